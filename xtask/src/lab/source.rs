//! Programs that the lab builds from Debian's source: fetched from the machine's own mirror, edited, built, kept in the cache.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::apt;
use crate::{
    paths, say,
    sh::{self, cmd},
};

/// One source, and what the lab changes in it.
#[derive(Debug)]
pub struct Source {
    /// Name and version, for people.
    pub name: &'static str,
    /// The folder in the cache.
    pub folder: &'static str,
    /// The tarball's path below the mirror's address.
    pub path: &'static str,
    /// Its SHA-256.
    pub sha256: &'static str,
    /// The list of edits, below the repository's root.
    pub edits: &'static str,
}

#[derive(Debug, Clone, Deserialize)]
struct Edits {
    edit: Vec<Edit>,
}

/// One change of one source file.
#[derive(Debug, Clone, Deserialize)]
struct Edit {
    file: String,
    why: String,
    find: String,
    replace: String,
}

impl Edit {
    /// The text after the edit; an error if `find` does not occur exactly once.
    fn applied(&self, text: &str) -> Result<String> {
        match text.matches(&self.find).count() {
            1 => Ok(text.replacen(&self.find, &self.replace, 1)),
            count => bail!("{}: an edit fits {count} times, not once ({})", self.file, self.why),
        }
    }
}

impl Source {
    /// The folder of what `build` made, from the cache if it was made before. `build` gets the edited source's folder and the
    /// folder to fill. `recipe` is all else that the result depends on: the folder is named by a checksum over it, the source
    /// and the edits.
    pub fn built(&self, recipe: &str, build: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
        let edits = fs::read_to_string(paths::root().join(self.edits))?;
        let base = paths::made(paths::cache()?.join(self.folder))?;
        let dir = base.join(self.key(&edits, recipe)?);
        if dir.is_dir() {
            return Ok(dir);
        }
        let edits: Edits = toml::from_str(&edits).context(self.edits)?;
        let tarball = self.tarball(&base)?;
        say::step(&format!("build {} (once; minutes)", self.name), || {
            let part = dir.with_extension(format!("part-{}", std::process::id()));
            let tree = paths::made(part.join("source"))?;
            sh::quiet(cmd("tar", ["--strip-components=1", "-xf"]).arg(&tarball).arg("-C").arg(&tree))?;
            for edit in &edits.edit {
                let file = tree.join(&edit.file);
                let text = fs::read_to_string(&file).with_context(|| format!("{} is missing", edit.file))?;
                fs::write(&file, edit.applied(&text)?)?;
            }
            say::note(format!("{} edits made", edits.edit.len()));
            build(&tree, &part)?;
            fs::remove_dir_all(&tree)?;
            if fs::rename(&part, &dir).is_err() && dir.is_dir() {
                fs::remove_dir_all(&part)?; // Another run was faster.
            }
            Ok(())
        })?;
        Ok(dir)
    }

    fn key(&self, edits: &str, recipe: &str) -> Result<String> {
        let scratch = env::temp_dir().join(format!("exitless-{}-{}", self.folder, std::process::id()));
        fs::write(&scratch, format!("{}\n{edits}\n{recipe}", self.sha256))?;
        let sums = sh::sha256(&[&scratch]);
        fs::remove_file(&scratch)?;
        let sum = sums?.first().and_then(|sum| sum.get(..16)).map(str::to_string).context("no checksum")?;
        let version = self.name.rsplit(' ').next().unwrap_or_default();
        Ok(format!("{version}-{sum}"))
    }

    /// The tarball, from the cache or from the mirror that this machine takes Debian from.
    fn tarball(&self, base: &Path) -> Result<PathBuf> {
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let file = base.join(name);
        if file.exists() && sh::sha256(&[&file])?.first().is_some_and(|sum| sum == self.sha256) {
            return Ok(file);
        }
        say::step(&format!("fetch the source of {} from Debian", self.name), || {
            let mirror = apt::mirror()?;
            // Some proxies want the plus sign in one form, some in the other.
            let addresses =
                [format!("{mirror}{}", self.path), format!("{mirror}{}", self.path.replace('+', "%2B"))];
            let mut last = Ok(());
            for address in &addresses {
                let mut fetch = cmd("/usr/lib/apt/apt-helper", ["download-file", address]);
                last = sh::quiet(fetch.arg(&file).arg(format!("SHA256:{}", self.sha256)));
                if last.is_ok() {
                    say::note(address);
                    break;
                }
            }
            last.with_context(|| format!("put {name} into {}, then run this command again", base.display()))
        })?;
        Ok(file)
    }
}

/// How many compilers to run at once.
pub fn jobs() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::{Edit, Edits};

    fn edit(find: &str) -> Edit {
        Edit { file: "a.cc".into(), why: "w".into(), find: find.into(), replace: "new".into() }
    }

    /// An edit that fits twice may change the wrong place; one that fits nowhere is silently lost.
    #[test]
    fn an_edit_fits_exactly_once() {
        assert_eq!(edit("old").applied("an old word").unwrap(), "an new word");
        assert!(edit("old").applied("old and old").is_err());
        assert!(edit("old").applied("none").is_err());
    }

    /// The lists of edits are well formed, and no edit leaves the text as it was.
    #[test]
    fn the_lists_can_be_read() {
        let lists =
            [include_str!("../../../lab/bochs/edits.toml"), include_str!("../../../lab/qemu/edits.toml")];
        for (list, least) in lists.into_iter().zip([10, 5]) {
            let edits: Edits = toml::from_str(list).unwrap();
            assert!(edits.edit.iter().all(|edit| edit.find != edit.replace && !edit.why.is_empty()));
            assert!(edits.edit.len() > least);
        }
    }
}
