//! A web server that dispatches mail and thumbnails, with minutely's commands beside it. `docs/axum.md` makes it step by step.
//!
//! ```text
//! cargo run --example axum -- serve
//! curl -i -H 'content-type: application/json' -d '{"address": "ada@example.com"}' http://127.0.0.1:3000/signups
//! curl -i -T cat.png http://127.0.0.1:3000/pictures/cat.png
//! cargo run --example axum -- queue supervise
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{post, put};
use axum::{Json, Router};
use clap::{Parser, Subcommand};
use image::{ImageError, ImageFormat};
use minutely::bus::Dispatched;
use minutely::config::Config;
use minutely::handler::{self, HandlerError};
use minutely::mail::Mail;
use minutely::message::Message;
use minutely::{App, AppBuilder};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::spawn_blocking;

/// How wide and high a thumbnail is at most, in pixels.
const THUMBNAIL: u32 = 64;

#[derive(Parser)]
#[command(version, about = "Welcomes those who sign up, and makes thumbnails of their pictures")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve requests
    Serve {
        #[arg(long, default_value = "127.0.0.1:3000")]
        listen: SocketAddr,
    },
    /// Queues and workers; the crontab line is `shop queue cron`
    #[command(subcommand)]
    Queue(minutely::cli::Command),
}

#[derive(Serialize, Deserialize)]
struct MakeThumbnail {
    picture: String,
}

impl Message for MakeThumbnail {
    const TYPE: &'static str = "shop.make_thumbnail";
}

/// Where pictures are: the server writes there, and the handler reads.
#[derive(Clone)]
struct Pictures {
    dir: PathBuf,
}

async fn make_thumbnail(
    message: MakeThumbnail,
    handler::State(pictures): handler::State<Pictures>,
) -> Result<(), HandlerError> {
    let picture = pictures.dir.join(&message.picture);
    // It takes long, and must not hold up the other messages of this process.
    match spawn_blocking(move || thumbnail(&picture)).await? {
        // No retry will make a picture of it.
        Err(error @ (ImageError::Decoding(_) | ImageError::Unsupported(_))) => Err(HandlerError::unrecoverable(error)),
        made => Ok(made?),
    }
}

fn thumbnail(picture: &std::path::Path) -> Result<(), ImageError> {
    let small = image::open(picture)?.thumbnail(THUMBNAIL, THUMBNAIL);
    // Renamed when it is whole: nobody sees half of it, and to make it twice does no harm.
    let unfinished = picture.with_extension("part");
    small.save_with_format(&unfinished, ImageFormat::Png)?;
    Ok(fs::rename(unfinished, picture.with_extension("thumb.png"))?)
}

fn builder(pictures: &Pictures) -> AppBuilder {
    let config = Config::builder()
        .transport("sync", "sync://")
        .transport("mail", "auto-fallback://mail?target=mail_queue&fallback=sync")
        .transport("mail_queue", "sqlite:var/shop.db?queue_name=mail")
        .transport("pictures", "auto-fallback://pictures?target=pictures_queue&fallback=sync")
        .transport("pictures_queue", "sqlite:var/shop.db?queue_name=pictures")
        .transport("failed", "sqlite:var/shop.db?queue_name=failed")
        .failure_transport("failed")
        .route(Mail::TYPE, ["mail"])
        .route(MakeThumbnail::TYPE, ["pictures"])
        .worker(json!({ "transports": ["mail"], "autoscale": { "desired_size": 10, "min": 1, "max": 2 } }))
        .worker(json!({ "transports": ["pictures"], "autoscale": { "desired_size": 5, "min": 1, "max": 4 } }))
        .set(
            "mailer",
            json!({ "dsn": "%env(default:smtp://127.0.0.1:1025:MAILER_DSN)%", "from": "Shop <shop@example.com>" }),
        );
    App::builder().config(config).state(pictures.clone()).handle(make_thumbnail)
}

/// What the requests share.
#[derive(Clone)]
struct Shop {
    app: App,
    pictures: Pictures,
}

fn router(app: App, pictures: Pictures) -> Router {
    Router::new()
        .route("/signups", post(sign_up))
        .route("/pictures/{name}", put(upload))
        .with_state(Shop { app, pictures })
}

#[derive(Deserialize)]
struct Signup {
    address: String,
}

type Refusal = (StatusCode, String);

async fn sign_up(State(shop): State<Shop>, Json(signup): Json<Signup>) -> Result<StatusCode, Refusal> {
    let mail = Mail {
        to: vec![signup.address],
        subject: "Welcome".into(),
        text: Some("It is good to have you here.".into()),
        ..Mail::default()
    };
    let dispatched = shop.app.dispatch(&mail).await.map_err(unavailable)?;
    Ok(accepted(&dispatched))
}

async fn upload(State(shop): State<Shop>, Path(name): Path<String>, picture: Bytes) -> Result<StatusCode, Refusal> {
    if !is_name_of_a_picture(&name) {
        return Err((StatusCode::BAD_REQUEST, "a picture has a name such as cat-1.png\n".into()));
    }
    let file = shop.pictures.dir.join(&name);
    let stored = spawn_blocking(move || fs::create_dir_all(&shop.pictures.dir).and_then(|()| fs::write(file, picture)));
    stored.await.map_err(unavailable)?.map_err(unavailable)?;
    let dispatched = shop.app.dispatch(&MakeThumbnail { picture: name }).await.map_err(unavailable)?;
    Ok(accepted(&dispatched))
}

/// It is part of a path.
fn is_name_of_a_picture(name: &str) -> bool {
    let stem = name.strip_suffix(".png").unwrap_or_default();
    !stem.is_empty() && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// 202 if it is queued, and 200 if it is done.
fn accepted(dispatched: &Dispatched) -> StatusCode {
    if dispatched.is_queued() { StatusCode::ACCEPTED } else { StatusCode::OK }
}

fn unavailable(error: impl std::fmt::Display) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n"))
}

#[tokio::main]
pub(crate) async fn main() -> ExitCode {
    let pictures = Pictures { dir: "pictures".into() };
    match Cli::parse().command {
        Command::Serve { listen } => match serve(listen, pictures).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Command::Queue(command) => minutely::cli::run(command, builder(&pictures)).await,
    }
}

async fn serve(listen: SocketAddr, pictures: Pictures) -> Result<(), Box<dyn std::error::Error>> {
    let app = builder(&pictures).build()?;
    let listener = TcpListener::bind(listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    // Ctrl-C, and what systemd and containers send.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    Ok(axum::serve(listener, router(app, pictures)).with_graceful_shutdown(stopped).await?)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::{Method, Request};
    use minutely::testing::TestApp;
    use tower::ServiceExt;

    use super::*;

    struct Test {
        app: TestApp,
        pictures: Pictures,
        _folder: tempfile::TempDir,
    }

    fn test() -> Test {
        let folder = tempfile::tempdir().unwrap();
        let pictures = Pictures { dir: folder.path().to_owned() };
        Test { app: builder(&pictures).test().unwrap(), pictures, _folder: folder }
    }

    impl Test {
        async fn request(&self, method: Method, path: &str, body: impl Into<Body>) -> StatusCode {
            let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
            let router = router(App::clone(&self.app), self.pictures.clone());
            router.oneshot(request.body(body.into()).unwrap()).await.unwrap().status()
        }

        async fn upload(&self, name: &str, picture: Vec<u8>) -> StatusCode {
            self.request(Method::PUT, &format!("/pictures/{name}"), picture).await
        }

        fn size(&self, name: &str) -> Option<(u32, u32)> {
            image::image_dimensions(self.pictures.dir.join(name)).ok()
        }
    }

    fn picture(width: u32, height: u32) -> Vec<u8> {
        let mut png = std::io::Cursor::new(Vec::new());
        image::RgbImage::new(width, height).write_to(&mut png, ImageFormat::Png).unwrap();
        png.into_inner()
    }

    #[tokio::test]
    async fn who_signs_up_is_welcomed() {
        let test = test();
        test.app.assume_worker("mail").await.unwrap();
        let status = test.request(Method::POST, "/signups", r#"{"address": "ada@example.com"}"#).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        assert_eq!(test.app.sent::<Mail>().only().to, ["ada@example.com"]);
    }

    #[tokio::test]
    async fn a_thumbnail_is_made_at_once_while_no_worker_runs() {
        let test = test();
        assert_eq!(test.upload("cat-1.png", picture(200, 100)).await, StatusCode::OK);
        assert_eq!(test.size("cat-1.thumb.png"), Some((64, 32)));
    }

    #[tokio::test]
    async fn a_thumbnail_is_made_later_while_one_does() {
        let test = test();
        test.app.assume_worker("pictures").await.unwrap();
        assert_eq!(test.upload("cat.png", picture(10, 640)).await, StatusCode::ACCEPTED);
        assert_eq!(test.size("cat.thumb.png"), None);
        test.app.work_until_idle().await;
        assert_eq!(test.size("cat.thumb.png"), Some((1, 64)));
    }

    #[tokio::test]
    async fn what_is_no_picture_is_kept_with_the_reason() {
        let test = test();
        test.app.assume_worker("pictures").await.unwrap();
        assert_eq!(test.upload("cat.png", b"a dog".to_vec()).await, StatusCode::ACCEPTED);
        test.app.work_until_idle().await;
        let failed = test.app.failed::<MakeThumbnail>().only();
        assert!(failed.error.unwrap().contains("Png"));
    }

    #[tokio::test]
    async fn what_is_no_signup_and_what_is_no_name_is_refused() {
        let test = test();
        assert_eq!(test.request(Method::POST, "/signups", "{}").await, StatusCode::UNPROCESSABLE_ENTITY);
        test.app.sent::<Mail>().assert_none();
        for name in ["..%2Fcat.png", ".png", "cat.gif", "cat.thumb.png"] {
            assert_eq!(test.upload(name, picture(1, 1)).await, StatusCode::BAD_REQUEST, "{name}");
        }
    }
}
