//! Other programs, with errors that name the command and say what it printed.

use std::{
    ffi::OsStr,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// The command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        let arg = arg.to_string_lossy();
        let plain = !arg.is_empty() && !arg.contains([' ', '"', '$', '\'', '(', ')']);
        text.push(' ');
        text.push_str(&if plain { arg.into_owned() } else { format!("'{arg}'") });
    }
    text
}

/// A command with its arguments.
pub fn cmd<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs to the end with inherited output; an exit code other than zero is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs to the end; output is shown only when the command fails.
pub fn quiet(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs to the end and returns standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("`{}` ended with {}:\n{stdout}{stderr}", shown(command), out.status);
    }
    Ok(stdout)
}

/// Is a program of this name on the search path?
pub fn have(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// SHA-256 of each file, in order, by coreutils (one process for all).
pub fn sha256(files: &[&Path]) -> Result<Vec<String>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let text = output(Command::new("sha256sum").arg("--").args(files))?;
    let sums: Vec<String> =
        text.lines().filter_map(|l| l.trim_start_matches('\\').get(..64)).map(Into::into).collect();
    if sums.len() != files.len() {
        bail!("sha256sum answered {} lines for {} files", sums.len(), files.len());
    }
    Ok(sums)
}

/// A command that needs the rights of root: as it is for root, through `sudo -n` otherwise.
pub fn as_root(program: &str) -> Result<Command> {
    if output(&mut cmd("id", ["-u"]))?.trim() == "0" {
        return Ok(Command::new(program));
    }
    if have("sudo") {
        let mut command = Command::new("sudo");
        command.args(["-n", "--", program]);
        return Ok(command);
    }
    bail!("`{program}` needs root: run as root once, or install sudo")
}
