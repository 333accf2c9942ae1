//! Initial RAM disks: a tree of files and its cpio archive ("newc", as the kernel reads it).
//!
//! Archives are not compressed: under emulation, unpacking costs more than loading. The kernel reads several archives
//! laid end to end, so an image is a big cached part and a small part that changes with each run.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::sh;

#[derive(Debug, Clone)]
enum Node {
    Dir,
    File { source: PathBuf, mode: u32 },
    Text { data: Vec<u8>, mode: u32 },
    Link(String),
    Device { major: u32, minor: u32 },
}

/// Files of an image by their absolute path in it.
#[derive(Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    fn put(&mut self, path: &str, node: Node) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            self.nodes.entry(path[..at].to_string()).or_insert(Node::Dir);
        }
        self.nodes.insert(path.to_string(), node);
    }

    /// An empty folder.
    pub fn dir(&mut self, path: &str) {
        self.put(path, Node::Dir);
    }

    /// A file with the bytes of `source`, its symbolic links followed; executable if `source` is.
    pub fn file(&mut self, path: &str, source: &Path) -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let meta = fs::metadata(source).with_context(|| format!("{} is missing", source.display()))?;
        let mode = if meta.permissions().mode() & 0o111 != 0 { 0o755 } else { 0o644 };
        self.put(path, Node::File { source: source.to_path_buf(), mode });
        Ok(())
    }

    /// A file with these bytes.
    pub fn text(&mut self, path: &str, data: impl Into<Vec<u8>>, mode: u32) {
        self.put(path, Node::Text { data: data.into(), mode });
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.put(path, Node::Link(target.to_string()));
    }

    /// A character device.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        self.put(path, Node::Device { major, minor });
    }

    /// A program and every shared library it needs, at the paths the loader looks for them.
    pub fn program(&mut self, path: &str, source: &Path) -> Result<()> {
        self.file(path, source)?;
        let text = sh::output(sh::cmd("ldd", [source]).env("LC_ALL", "C"))
            .with_context(|| format!("which libraries does {} need?", source.display()))?;
        for line in text.lines().map(str::trim) {
            if line.contains("not found") {
                bail!("{}: {line}; install the package that has this library", source.display());
            }
            let found = line.split_whitespace().find(|word| word.starts_with('/'));
            if let Some(library) = found {
                self.file(library, Path::new(library))?;
            }
        }
        Ok(())
    }

    /// A checksum over every path, mode and content.
    pub fn key(&self) -> Result<String> {
        let mut list = String::new();
        let mut sources = Vec::new();
        for (path, node) in &self.nodes {
            match node {
                Node::File { source, mode } => {
                    list.push_str(&format!("{path} file {mode:o}\n"));
                    sources.push(source.as_path());
                }
                Node::Text { data, mode } => {
                    list.push_str(&format!("{path} text {mode:o} {}\n", String::from_utf8_lossy(data)))
                }
                other => list.push_str(&format!("{path} {other:?}\n")),
            }
        }
        for sum in sh::sha256(&sources)? {
            list.push_str(&sum);
        }
        let scratch = std::env::temp_dir().join(format!("exitless-key-{}", std::process::id()));
        fs::write(&scratch, list)?;
        let sums = sh::sha256(&[&scratch]);
        fs::remove_file(&scratch)?;
        sums?.first().and_then(|sum| sum.get(..16)).map(Into::into).context("no checksum")
    }

    /// Writes the archive; returns its size in bytes.
    pub fn write(&self, to: &Path) -> Result<u64> {
        let file = File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
        let mut out = Archive { out: BufWriter::with_capacity(1 << 20, file), written: 0, inode: 1 };
        for (path, node) in &self.nodes {
            match node {
                Node::Dir => out.entry(path, 0o040_755, (0, 0), &[])?,
                Node::File { source, mode } => {
                    let data =
                        fs::read(source).with_context(|| format!("cannot read {}", source.display()))?;
                    out.entry(path, 0o100_000 | mode, (0, 0), &data)?;
                }
                Node::Text { data, mode } => out.entry(path, 0o100_000 | mode, (0, 0), data)?,
                Node::Link(target) => out.entry(path, 0o120_777, (0, 0), target.as_bytes())?,
                Node::Device { major, minor } => out.entry(path, 0o020_600, (*major, *minor), &[])?,
            }
        }
        out.entry("TRAILER!!!", 0, (0, 0), &[])?;
        out.pad(512)?;
        out.out.flush()?;
        Ok(out.written)
    }
}

struct Archive {
    out: BufWriter<File>,
    written: u64,
    inode: u32,
}

impl Archive {
    fn bytes(&mut self, data: &[u8]) -> Result<()> {
        self.out.write_all(data)?;
        self.written += data.len() as u64;
        Ok(())
    }

    fn pad(&mut self, to: u64) -> Result<()> {
        let missing = self.written.next_multiple_of(to) - self.written;
        self.bytes(&vec![0; missing as usize])
    }

    /// Header of 110 characters: magic, then 13 fields of 8 hexadecimal digits.
    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), data: &[u8]) -> Result<()> {
        let size = u32::try_from(data.len()).with_context(|| format!("{path} is larger than 4 GB"))?;
        let name = u32::try_from(path.len() + 1)?;
        let (major, minor) = device;
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name, 0];
        self.inode += 1;
        let mut header = String::from("070701");
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        self.bytes(header.as_bytes())?;
        self.bytes(path.as_bytes())?;
        self.bytes(&[0])?;
        self.pad(4)?;
        self.bytes(data)?;
        self.pad(4)
    }
}

#[cfg(test)]
mod tests {
    use super::Tree;

    /// The kernel refuses a file whose folders come after it or not at all.
    #[test]
    fn folders_come_before_their_files() {
        let mut tree = Tree::default();
        tree.text("/a/b/c", "x", 0o644);
        let paths: Vec<_> = tree.nodes.keys().cloned().collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c"]);
    }

    /// A cached image must not be used for other content.
    #[test]
    fn the_key_follows_the_content() {
        let mut one = Tree::default();
        one.text("/init", "one", 0o755);
        let mut two = Tree::default();
        two.text("/init", "two", 0o755);
        assert_ne!(one.key().unwrap(), two.key().unwrap());
    }

    /// Every header starts on a multiple of four, the archive ends on a block, so archives can be laid end to end.
    #[test]
    fn entries_are_aligned() {
        let mut tree = Tree::default();
        tree.text("/init", "odd", 0o755);
        tree.link("/bin/sh", "busybox");
        let path = std::env::temp_dir().join(format!("exitless-cpio-{}", std::process::id()));
        assert_eq!(tree.write(&path).unwrap() % 512, 0);
        let data = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let at: Vec<_> =
            data.windows(6).enumerate().filter(|(_, w)| w == b"070701").map(|(i, _)| i).collect();
        assert_eq!(at.len(), 4, "bin, bin/sh, init and the trailer");
        assert!(at.iter().all(|i| i % 4 == 0));
    }
}
