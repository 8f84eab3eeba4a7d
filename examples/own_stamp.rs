//! A stamp of one's own: which tenant a message belongs to, beside the message instead of in each type.
//!
//! ```text
//! cargo run --example own_stamp
//! ```

use minutely::config::Config;
use minutely::handler::{HandlerError, Stamped};
use minutely::message::{Message, Stamp};
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct TenantStamp {
    tenant: String,
}

impl Stamp for TenantStamp {
    // A stamp travels as JSON in a header: `X-Message-Stamp-shop.tenant: [{"tenant":"acme"}]`. Without PHP on the queue
    // the name means nothing more; keep it stable, for messages wait under it. Where PHP consumes the queue it is the
    // name of the stamp's class there (`App\Messenger\TenantStamp`): Symfony refuses messages with a stamp whose class
    // it lacks.
    const CLASS: &'static str = "shop.tenant";
}

#[derive(Serialize, Deserialize)]
struct WriteInvoice {
    order: u32,
}

impl Message for WriteInvoice {
    const TYPE: &'static str = "shop.write_invoice";
}

async fn write_invoice(invoice: WriteInvoice, tenant: Option<Stamped<TenantStamp>>) -> Result<(), HandlerError> {
    let Some(Stamped(TenantStamp { tenant })) = tenant else {
        return Err(HandlerError::unrecoverable("an invoice of no tenant"));
    };
    println!("{tenant} writes an invoice for order {}", invoice.order);
    Ok(())
}

fn builder() -> AppBuilder {
    let config = Config::builder().transport("invoices", "in-memory://").route(WriteInvoice::TYPE, ["invoices"]);
    App::builder().config(config).handle(write_invoice)
}

#[tokio::main]
async fn main() -> Result<(), minutely::Error> {
    let app = builder().build()?;
    let worker = app.worker(["invoices"]).limit(1).spawn()?;
    app.dispatch(&WriteInvoice { order: 7 }).stamp(TenantStamp { tenant: "acme".into() }).await?;
    worker.wait().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_stamp_travels_with_the_message() -> Result<(), minutely::Error> {
        let app = builder().test()?;
        app.dispatch(&WriteInvoice { order: 7 }).stamp(TenantStamp { tenant: "acme".into() }).await?;
        let headers = app.sent::<WriteInvoice>().only().envelope.encode().headers;
        assert_eq!(headers.get("X-Message-Stamp-shop.tenant"), Some(r#"[{"tenant":"acme"}]"#));
        app.dispatch(&WriteInvoice { order: 8 }).await?;

        app.work_until_idle().await;
        assert_eq!(app.handled::<WriteInvoice>().only().order, 7);
        assert_eq!(app.failed::<WriteInvoice>().only().order, 8);
        Ok(())
    }
}
