//! `crontab --install` and `--remove`.

use serde_json::json;

use super::super::installation::Installation;
use super::super::output::{self, Format};
use super::super::{App, End, Failure, Result};
use super::block::{self, BlockError, blocks};
use super::check;
use super::program::Crontab;

pub(super) async fn install(crontab: &Crontab, app: &App, installation: &Installation, format: Format) -> Result<End> {
    let line = installation.crontab_line();
    let config = installation.config.to_string_lossy();
    let of_this = |config: &[u8]| is_of(installation, config);
    let lock = crontab.lock().await?;
    let text = crontab.read().await?;
    // Before lines that were added by hand: without its markers, minutely's own line would be one of them.
    blocks(&text, of_this).map_err(damaged)?;
    let by_hand = check::by_hand(&text, crontab, installation);
    if let Some(entry) = by_hand.first() {
        let at = format!("line {} of {}", entry.line, entry.crontab);
        return Err(Failure::Failed(format!(
            "{at} starts this installation already: {}\nremove it, and run this again; nothing is changed",
            entry.text
        )));
    }
    let new = block::install(&text, &config, &line, of_this).map_err(damaged)?;
    let changed = new != text;
    if changed {
        crontab.write(&new).await?;
        verify(crontab, &line, of_this).await?;
    }
    drop(lock);
    match format {
        Format::Json => output::json(&json!({ "changed": changed, "line": line }))?,
        Format::Text => {
            let owner = crontab.owner();
            let did = if changed { "is now in" } else { "is already in" };
            output::line(format_args!("This line {did} the crontab of {owner}:\n  {line}"));
            if changed {
                let check = crontab.typed("crontab --check");
                output::line(format_args!("Within a minute cron starts it; `{check}` says whether it does."));
            }
        }
    }
    super::warn(app, installation, crontab, &new);
    for warning in check::abandoned_lines(&new, crontab) {
        output::warning(&warning);
    }
    Ok(End::Well)
}

pub(super) async fn remove(crontab: &Crontab, installation: &Installation, format: Format) -> Result<End> {
    let _lock = crontab.lock().await?;
    let text = crontab.read().await?;
    let new = block::remove(&text, |config| is_of(installation, config)).map_err(damaged)?;
    let changed = new != text;
    if changed {
        crontab.write(&new).await?;
    }
    match format {
        Format::Json => output::json(&json!({ "changed": changed }))?,
        Format::Text if changed => {
            output::line(format_args!("The line is no longer in the crontab of {}.", crontab.owner()));
            let stop = crontab.typed("stop-workers");
            output::line(format_args!(
                "Workers that run go on until they reach their limits; `{stop}` ends them earlier."
            ));
        }
        Format::Text => {
            let install = crontab.typed("crontab --install");
            output::line(format_args!("`{install}` has put no line into the crontab of {}.", crontab.owner()));
        }
    }
    for entry in check::by_hand(&new, crontab, installation) {
        output::warning(&format!(
            "line {} of {} still starts this installation; it was added by hand, and is left as it is: {}",
            entry.line, entry.crontab, entry.text
        ));
    }
    for warning in check::abandoned_lines(&new, crontab) {
        output::warning(&warning);
    }
    Ok(End::Well)
}

/// Whether a marker names this installation.
pub(super) fn is_of(installation: &Installation, config: &[u8]) -> bool {
    std::str::from_utf8(config).is_ok_and(|config| installation.is_of(config.as_ref()))
}

/// Looks whether the line is where it was put: an editor that was opened before may have written its own text meanwhile.
async fn verify(crontab: &Crontab, line: &str, is_ours: impl Fn(&[u8]) -> bool) -> Result<()> {
    let found = blocks(&crontab.read().await?, is_ours).unwrap_or_default();
    if found.iter().any(|block| block.line.as_ref().is_some_and(|(_, found)| found == line.as_bytes())) {
        return Ok(());
    }
    Err(Failure::Failed(
        "the line was added, and is not there: perhaps another program has replaced the crontab meanwhile; run this again"
            .to_owned(),
    ))
}

fn damaged(error: BlockError) -> Failure {
    Failure::Failed(format!("the crontab's {error} (with `crontab -e`); nothing is changed"))
}
