//! Debian packages: what is installed, what can be fetched, and unpacking without installing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use anyhow::{Context, Result, bail};

use crate::{
    paths, say,
    sh::{self, cmd},
};

/// The suite of what must be newer than in Debian 12.
const BACKPORTS: &str = "bookworm-backports";
const BACKPORTS_LIST: &str = "/etc/apt/sources.list.d/exitless-backports.sources";
const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Is the package installed?
pub fn installed(package: &str) -> bool {
    let query = sh::output(&mut cmd("dpkg-query", ["-W", "-f", "${Status}", package]));
    query.is_ok_and(|status| status.ends_with("ok installed"))
}

/// Reads the package lists anew, once per run of this tool.
pub fn update() -> Result<()> {
    static DONE: Once = Once::new();
    let mut result = Ok(());
    DONE.call_once(|| result = force_update());
    result
}

fn force_update() -> Result<()> {
    say::step("apt-get update", || {
        sh::quiet(sh::as_root("apt-get")?.args(["update", "-q"])).context(
            "package lists cannot be read: look at /etc/apt and at the network, then run this command again",
        )
    })
}

/// `apt-get install` without questions, to be completed by a suite and packages.
fn apt_install() -> Result<Command> {
    let mut command = sh::as_root("env")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "install"]);
    command.args(["-y", "-q", "--no-install-recommends"]);
    Ok(command)
}

/// Installs what is missing of `packages`, from `suite` if one is named.
pub fn install(packages: &[&str], suite: Option<&str>) -> Result<()> {
    let missing: Vec<_> = packages.iter().copied().filter(|package| !installed(package)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let attempt = || -> Result<()> {
        let mut command = apt_install()?;
        if let Some(suite) = suite {
            command.args(["-t", suite]);
        }
        sh::quiet(command.args(&missing))
    };
    say::step(&format!("install {}", missing.join(" ")), || {
        attempt().or_else(|_| {
            update()?;
            attempt().context("install these packages by hand, then run this command again")
        })
    })
}

/// The version that apt would fetch, if it knows the package.
pub fn candidate(package: &str) -> Option<String> {
    let text = sh::output(cmd("apt-cache", ["policy", package]).env("LC_ALL", "C")).ok()?;
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_string())
}

/// Every package name that starts with `prefix`.
pub fn names(prefix: &str) -> Result<Vec<String>> {
    Ok(sh::output(&mut cmd("apt-cache", ["pkgnames", prefix]))?.lines().map(Into::into).collect())
}

/// What `package` depends on, alternatives included.
pub fn depends(package: &str) -> Result<Vec<String>> {
    let text = sh::output(cmd("apt-cache", ["depends", package]).env("LC_ALL", "C"))?;
    let words = text.lines().filter_map(|line| line.split_once("Depends:"));
    Ok(words.map(|(_, name)| name.trim().to_string()).collect())
}

/// Fetches `packages` and unpacks them below `to`, without installing.
pub fn unpack(packages: &[String], to: &Path) -> Result<()> {
    let scratch = paths::made(to.with_extension(format!("fetch-{}", std::process::id())))?;
    let fetch =
        || sh::quiet(Command::new("apt-get").args(["download", "-q"]).args(packages).current_dir(&scratch));
    let result = fetch().or_else(|_| {
        update()?;
        fetch().context("packages cannot be fetched: look at the network, then run this command again")
    });
    let result = result.and_then(|()| unpack_all(&scratch, to));
    fs::remove_dir_all(&scratch)?;
    result
}

fn unpack_all(from: &Path, to: &Path) -> Result<()> {
    for package in packages_in(from)? {
        say::note(format!(
            "{} ({})",
            package.file_name().unwrap_or_default().to_string_lossy(),
            say::size(fs::metadata(&package)?.len())
        ));
        sh::quiet(Command::new("dpkg").arg("-x").arg(&package).arg(to))?;
    }
    Ok(())
}

fn packages_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ext| ext == "deb") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Makes the backports suite known to apt, at the mirror this machine already uses.
pub fn enable_backports() -> Result<()> {
    if known_suite(BACKPORTS)?.is_some() {
        return Ok(());
    }
    let main = match known_suite("bookworm")? {
        Some(uri) => uri,
        None => {
            update()?;
            known_suite("bookworm")?.context(
                "apt has no source for Debian bookworm, so its mirror is unknown: look at /etc/apt, \
                 then run this command again",
            )?
        }
    };
    say::step("make bookworm-backports known to apt", || {
        let mut text = format!("Types: deb\nURIs: {main}\nSuites: {BACKPORTS}\nComponents: main\n");
        if Path::new(DEBIAN_KEYRING).exists() {
            text.push_str(&format!("Signed-By: {DEBIAN_KEYRING}\n"));
        }
        let scratch = std::env::temp_dir().join(format!("exitless-sources-{}", std::process::id()));
        fs::write(&scratch, text)?;
        let copied = sh::quiet(sh::as_root("install")?.args(["-m", "644"]).arg(&scratch).arg(BACKPORTS_LIST));
        fs::remove_file(&scratch)?;
        copied?;
        say::note(format!("wrote {BACKPORTS_LIST}"));
        force_update()
    })
}

/// The address from which this machine takes Debian itself, with a slash at its end.
pub fn mirror() -> Result<String> {
    let format = ["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"];
    let read = || -> Result<Option<String>> {
        let text = sh::output(&mut cmd("apt-get", format))?;
        Ok(text
            .lines()
            .find_map(|line| line.strip_prefix("Debian|Debian|"))
            .map(|uri| uri.trim().to_string()))
    };
    let uri = match read()? {
        Some(uri) => uri,
        None => {
            update()?;
            read()?.context("apt has no source for Debian, so its mirror is unknown: look at /etc/apt")?
        }
    };
    Ok(if uri.ends_with('/') { uri } else { format!("{uri}/") })
}

/// The address from which the machine's own configuration takes `suite`.
fn known_suite(suite: &str) -> Result<Option<String>> {
    let format = ["indextargets", "--format", "$(RELEASE) $(REPO_URI)", "Created-By: Packages"];
    let text = sh::output(&mut cmd("apt-get", format))?;
    let uri = text.lines().find_map(|line| line.split_once(' ').filter(|(release, _)| *release == suite));
    Ok(uri.map(|(_, uri)| uri.trim().to_string()))
}

/// Installs `package` for its `program`, unless that is there in version `least` (major, minor) or later; from backports on Debian 12.
pub fn install_newer(package: &str, program: &str, least: (u32, u32)) -> Result<()> {
    let have = sh::output(&mut cmd(program, ["--version"])).ok().and_then(|text| version_in(&text));
    if have.is_some_and(|have| have >= least) {
        return Ok(());
    }
    let wanted = format!("{package} {}.{} or later", least.0, least.1);
    let distribution = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !distribution.contains("VERSION_CODENAME=bookworm") {
        bail!(
            "the lab needs {wanted} and knows how to install it on Debian 12 only: \
             install it by hand, then run this command again"
        );
    }
    enable_backports()?;
    let mut command = apt_install()?;
    command.args(["-t", BACKPORTS, package]);
    say::step(&format!("install {package} from backports"), || {
        sh::quiet(&mut command)
            .with_context(|| format!("install {wanted} by hand, then run this command again"))
    })
}

/// The first word that is a version: its first two numbers.
fn version_in(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.split('.');
        let major = numbers.next()?.parse().ok()?;
        Some((major, numbers.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn versions_as_programs_print_them() {
        assert_eq!(
            version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright"),
            Some((10, 0))
        );
        assert_eq!(version_in("1.7.0\n"), Some((1, 7)));
        assert_eq!(version_in("no such thing"), None);
    }
}
