//! One connection to a mail server: greeting, encryption, login, one mail.

use std::fmt::Write;
use std::future::Future;
use std::time::Duration;

use lettre::transport::smtp::authentication::Mechanism;
use lettre::transport::smtp::client::AsyncSmtpConnection;
use lettre::transport::smtp::commands::{Data, Mail, Quit, Rcpt};
use lettre::transport::smtp::extension::{Extension, MailBodyParameter, MailParameter};
use lettre::transport::smtp::response::{Category, Code, Response, Severity};
use tokio::time::{Instant, timeout, timeout_at};

use super::{Encryption, Smtp};
use crate::causes::{append, causes};
use crate::mail::draft::Prepared;
use crate::mail::error::MailError;

type SmtpError = lettre::transport::smtp::Error;

/// The ways to log in, the preferred one first.
const MECHANISMS: [Mechanism; 2] = [Mechanism::Plain, Mechanism::Login];

/// How long to wait for the answer to QUIT. What becomes of the mail is known before.
const QUIT_TIMEOUT: Duration = Duration::from_secs(1);

/// The mail is written in pieces of this many bytes.
const PIECE: usize = 64 * 1024;

/// The server closes the connection.
const CLOSING: u16 = 421;

/// How many refused recipients an error names.
const MAX_NAMED: usize = 5;

/// How much of what a server says is shown, in characters.
const MAX_ANSWER: usize = 500;

pub(super) struct Session<'a> {
    smtp: &'a Smtp,
    connection: AsyncSmtpConnection,
    deadline: Instant,
}

/// Why a step did not succeed.
enum Failure {
    /// There was no answer in time.
    Late,
    /// The server refuses it.
    Refused(Code, SmtpError),
    /// There is no connection, or none that can be gone on with.
    Broken(SmtpError),
}

impl From<SmtpError> for Failure {
    fn from(error: SmtpError) -> Self {
        match error.status() {
            Some(code) => Self::Refused(code, error),
            None => Self::Broken(error),
        }
    }
}

async fn within<T>(deadline: Instant, step: impl Future<Output = Result<T, SmtpError>>) -> Result<T, Failure> {
    match timeout_at(deadline, step).await {
        Ok(done) => done.map_err(Failure::from),
        Err(_) => Err(Failure::Late),
    }
}

impl<'a> Session<'a> {
    /// Connects. If that fails it is not a mail's fault, so another attempt may succeed.
    pub(super) async fn begin(smtp: &'a Smtp) -> Result<Self, MailError> {
        let deadline = Instant::now() + smtp.timeout;
        let tls = match &smtp.encryption {
            Encryption::FromTheBeginning(tls) => Some(tls.clone()),
            _ => None,
        };
        let server = (smtp.host.as_str(), smtp.port);
        let connecting = AsyncSmtpConnection::connect_tokio1(server, Some(smtp.timeout), &smtp.hello, tls, smtp.source);
        let connection = within(deadline, connecting)
            .await
            .map_err(|failure| smtp.failed(&failure, "does not let this host in", smtp.advice(&failure)))?;
        Ok(Self { smtp, connection, deadline })
    }

    /// Encrypts, logs in and sends the mail.
    pub(super) async fn send(&mut self, mail: &Prepared) -> Result<(), MailError> {
        self.encrypt().await?;
        self.log_in().await?;
        self.hand_over(mail).await
    }

    async fn encrypt(&mut self) -> Result<(), MailError> {
        let tls = match &self.smtp.encryption {
            Encryption::Required(tls) => tls,
            Encryption::IfOffered(tls) if self.connection.can_starttls() => tls,
            _ => return Ok(()),
        };
        if !self.connection.can_starttls() {
            return Err(self.smtp.misconfigured(
                "offers no encryption (STARTTLS), which `require_tls` asks for: leave that out, or write smtps:// if it has a port where TLS begins at once, usually 465",
            ));
        }
        let encrypted = within(self.deadline, self.connection.starttls(tls.clone(), &self.smtp.hello)).await;
        encrypted.map_err(|failure| self.smtp.failed(&failure, "refuses STARTTLS", self.smtp.advice(&failure)))
    }

    async fn log_in(&mut self) -> Result<(), MailError> {
        let Some(login) = &self.smtp.login else { return Ok(()) };
        if self.connection.server_info().get_auth_mechanism(&MECHANISMS).is_none() {
            let why = if self.connection.is_encrypted() {
                "offers no login that is known here (PLAIN, LOGIN): leave out user and password in the DSN if it needs none"
            } else {
                "offers no login (PLAIN, LOGIN) without encryption: use its port for mail programs, usually 587, or \
                 smtps://; or leave out user and password in the DSN"
            };
            return Err(self.smtp.misconfigured(why));
        }
        let logged_in = within(self.deadline, self.connection.auth(&MECHANISMS, login)).await;
        logged_in.map(drop).map_err(|failure| self.smtp.failed(&failure, "refuses the login", ""))
    }

    /// Sends a mail: to all its recipients, or to none.
    async fn hand_over(&mut self, mail: &Prepared) -> Result<(), MailError> {
        let (smtp, deadline) = (self.smtp, self.deadline);
        let from = mail.envelope.from().cloned();
        let sender = from.as_ref().map_or_else(String::new, |from| format!(" the sender {from}"));
        let begin = Mail::new(from, self.parameters(mail)?);
        let taken = within(deadline, self.connection.command(begin))
            .await
            .map_err(|failure| smtp.not_sent(&failure, &format!("refuses{sender}")))?;
        smtp.must_be(Severity::PositiveCompletion, &taken, "MAIL")?;
        self.name_recipients(mail).await?;
        let begun = within(deadline, self.connection.command(Data))
            .await
            .map_err(|failure| smtp.not_sent(&failure, "refuses the mail"))?;
        // Otherwise it would take the mail for commands.
        smtp.must_be(Severity::PositiveIntermediate, &begun, "DATA")?;
        let sent = within(deadline, self.connection.message_iter(mail.content.chunks(PIECE))).await;
        let sent = sent.map_err(|failure| {
            let refused = matches!(failure, Failure::Refused(..));
            let error = smtp.not_sent(&failure, "refuses the mail");
            if refused { error } else { error.and("; if it has taken it nevertheless, the mail arrives twice") }
        })?;
        smtp.must_be(Severity::PositiveCompletion, &sent, "the mail")
    }

    fn parameters(&self, mail: &Prepared) -> Result<Vec<MailParameter>, MailError> {
        let offers = |extension| self.connection.server_info().supports_feature(extension);
        let mut parameters = Vec::new();
        let addresses = mail.envelope.from().into_iter().chain(mail.envelope.to());
        if !addresses.map(AsRef::<str>::as_ref).all(str::is_ascii) {
            if !offers(Extension::SmtpUtfEight) {
                return Err(self.smtp.cannot_take("an address that is not ASCII (SMTPUTF8)"));
            }
            parameters.push(MailParameter::SmtpUtfEight);
        }
        if !mail.content.is_ascii() {
            if !offers(Extension::EightBitMime) {
                return Err(self.smtp.cannot_take("content that is not ASCII (8BITMIME)"));
            }
            parameters.push(MailParameter::Body(MailBodyParameter::EightBitMime));
        }
        Ok(parameters)
    }

    /// Asks for all recipients, so that an error names all that are refused.
    async fn name_recipients(&mut self, mail: &Prepared) -> Result<(), MailError> {
        let mut refused = Vec::new();
        for to in mail.envelope.to() {
            let named = within(self.deadline, self.connection.command(Rcpt::new(to.clone(), vec![]))).await;
            match named {
                Ok(named) => self.smtp.must_be(Severity::PositiveCompletion, &named, "RCPT")?,
                Err(Failure::Refused(code, error)) if u16::from(code) != CLOSING => refused.push((to, code, error)),
                Err(failure) => return Err(self.smtp.not_sent(&failure, &format!("refuses the recipient {to}"))),
            }
        }
        // The first that no further attempt will change.
        let worst = refused.iter().find(|(_, code, _)| is_permanent(*code)).or(refused.first());
        let Some((_, code, _)) = worst else { return Ok(()) };
        let mut text = String::new();
        for (n, (to, code, error)) in refused.iter().take(MAX_NAMED).enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            let _ = write!(text, "{separator}{to}: {}", self.smtp.answer(*code, error));
        }
        if let Some(more @ 1..) = refused.len().checked_sub(MAX_NAMED) {
            let _ = write!(text, "; and {more} more");
        }
        if refused.len() < mail.envelope.to().len() {
            text.push_str(" (so the other recipients do not get the mail either)");
        }
        let text = format!("the mail server {} refuses the recipient {text}", self.smtp.server);
        Err(refusal(*code, text))
    }

    /// Takes leave. The mail is sent or not, whatever the server says now.
    pub(super) async fn quit(mut self) {
        let _ = timeout(QUIT_TIMEOUT, self.connection.command(Quit)).await;
    }
}

/// Another attempt would fail in the same way. A login that is missing (530) is not the mail's fault.
fn is_permanent(code: Code) -> bool {
    code.severity == Severity::PermanentNegativeCompletion && code.category != Category::Unspecified3
}

fn refusal(code: Code, text: String) -> MailError {
    let error = if is_permanent(code) { MailError::permanent(text) } else { MailError::temporary(text) };
    error.with_code(u16::from(code).into())
}

impl Smtp {
    /// What was wrong before the mail was begun.
    fn failed(&self, failure: &Failure, refusing: &str, advice: &str) -> MailError {
        let error = MailError::temporary(format!("{}{advice}", self.text(failure, refusing)));
        match failure {
            Failure::Refused(code, _) => error.with_code(u16::from(*code).into()),
            Failure::Late | Failure::Broken(_) => error,
        }
    }

    /// What was wrong with the mail, or during it.
    fn not_sent(&self, failure: &Failure, refusing: &str) -> MailError {
        let text = self.text(failure, refusing);
        match failure {
            Failure::Refused(code, _) => refusal(*code, text),
            Failure::Late | Failure::Broken(_) => MailError::temporary(text),
        }
    }

    /// An answer of another kind is not what the protocol has for this step. The server is not believed.
    fn must_be(&self, severity: Severity, answer: &Response, step: &str) -> Result<(), MailError> {
        let code = answer.code();
        if code.severity == severity {
            return Ok(());
        }
        let said = self.shown(&answer.message().collect::<Vec<_>>().join(" "));
        let text =
            format!("the mail server {} answers {step} with {code} {said}, which is no answer to it", self.server);
        Err(MailError::temporary(text).with_code(u16::from(code).into()))
    }

    /// What only another configuration changes. The mail waits for that.
    fn misconfigured(&self, what: &str) -> MailError {
        MailError::temporary(format!("the mail server {} {what}", self.server))
    }

    fn cannot_take(&self, what: &str) -> MailError {
        MailError::permanent(format!("the mail server {} cannot take {what}", self.server))
    }

    fn text(&self, failure: &Failure, refusing: &str) -> String {
        let server = &self.server;
        match failure {
            Failure::Late => {
                let seconds = self.timeout.as_secs_f64();
                format!("the mail server {server} has not taken it within {seconds} s (`mailer.timeout`)")
            }
            Failure::Refused(code, error) => {
                format!("the mail server {server} {refusing}: {}", self.answer(*code, error))
            }
            Failure::Broken(error) => format!("the mail server {server}: {}", self.shown(&with_causes(error))),
        }
    }

    /// What the server has answered.
    fn answer(&self, code: Code, error: &SmtpError) -> String {
        let text = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
        format!("{code} {}", self.shown(&text)).trim_end().to_owned()
    }

    fn shown(&self, text: &str) -> String {
        let text: String = self.secrets.hide(text).chars().take(MAX_ANSWER).collect();
        text.replace(char::is_control, " ")
    }

    /// What to do if it does not even come to the mail.
    fn advice(&self, failure: &Failure) -> &'static str {
        let is_tls = matches!(self.encryption, Encryption::FromTheBeginning(_));
        match failure {
            Failure::Refused(..) => "",
            Failure::Late if is_tls => "",
            Failure::Late => "; if TLS begins at once at this port, write smtps://",
            Failure::Broken(error) => {
                let text = with_causes(error);
                if text.contains("certificate") {
                    "; `ca_file` in the DSN names a certificate authority to trust"
                } else if is_tls && (text.contains("InvalidContentType") || text.contains("corrupt message")) {
                    "; TLS does not begin at once at this port: write smtp://, or use its port for TLS, usually 465"
                } else if !is_tls && error.is_response() {
                    "; if TLS begins at once at this port, write smtps://"
                } else {
                    ""
                }
            }
        }
    }
}

/// The error with what is behind it, each once.
pub(super) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    append(error.to_string(), causes(error))
}
