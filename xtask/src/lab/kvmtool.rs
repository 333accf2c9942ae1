//! kvmtool, the smallest VMM: no Debian package has it, so a static build (`make lkvm-static` in its source) is taken from
//! where EXITLESS_LKVM says. Without it the scenario skips that part.

use std::{env, path::PathBuf};

use anyhow::{Result, bail};

use super::image::Job;

/// Puts `/lab/lkvm` into the image, if there is one.
pub fn add(job: &mut Job) -> Result<()> {
    let Some(file) = env::var_os("EXITLESS_LKVM").map(PathBuf::from) else { return Ok(()) };
    if !file.is_file() {
        bail!("EXITLESS_LKVM names {}, which is no file", file.display());
    }
    job.files.push(("lkvm".into(), file));
    Ok(())
}
