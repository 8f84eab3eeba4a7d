//! An application with a message and a handler of its own, and all of minutely's commands.
//!
//! ```text
//! cargo run --example mailer -- --config examples/mailer.yaml dispatch 'App\Message\SendEmail' '{"to":"ada@example.com"}'
//! cargo run --example mailer -- --config examples/mailer.yaml supervise
//! ```

use std::process::ExitCode;

use minutely::App;
use minutely::handler::HandlerError;
use minutely::message::Message;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct SendEmail {
    to: String,
}

impl Message for SendEmail {
    const TYPE: &'static str = r"App\Message\SendEmail";
}

async fn send_email(message: SendEmail) -> Result<(), HandlerError> {
    if !message.to.contains('@') {
        // No retry will make an address of it.
        return Err(HandlerError::unrecoverable(format!("\"{}\" is no address", message.to)));
    }
    println!("an e-mail to {}", message.to);
    Ok(())
}

fn main() -> ExitCode {
    minutely::cli::main(App::builder().handle(send_email))
}
