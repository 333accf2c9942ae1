//! Tests that are known to fail on an emulated machine for a reason that is not the module's: `lab/hosts/known.toml`.
//!
//! Such a test counts as skipped, with the reason, if it fails and its message has the words that the list gives. One that
//! fails in another way is a failure; so is one that passes: then the list is out of date.

use std::fs;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{
    machine::Kind,
    report::{Test, Verdict},
    scenario::Module,
};
use crate::paths;

/// One entry of the list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Known {
    /// The test's name as it is printed.
    pub test: String,
    /// Where it fails.
    pub machine: Kind,
    /// On this module only (absent: on both).
    pub module: Option<Module>,
    /// Only if the emulated host has at least so many CPUs.
    #[serde(default)]
    pub cpus: u32,
    /// Not with this parameter of the module.
    pub unless: Option<String>,
    /// Words in the failure's message.
    pub says: String,
    /// Whose fault it is.
    pub why: String,
    /// Depends on the moment: passing is no news.
    #[serde(default)]
    pub sometimes: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    failure: Vec<Known>,
}

/// What is known of this module with these parameters on this machine.
pub fn of(machine: Kind, module: Module, cpus: u32, params: &str) -> Result<Vec<Known>> {
    let mut list = all()?;
    list.retain(|k| k.machine == machine && k.module.is_none_or(|m| m == module) && k.cpus <= cpus);
    list.retain(|k| !params.split(' ').any(|param| k.unless.as_deref() == Some(param)));
    Ok(list)
}

fn all() -> Result<Vec<Known>> {
    let path = paths::root().join("lab/hosts/known.toml");
    let text = fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let file: File = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.failure)
}

/// The test's result in the light of the list.
pub fn judged(list: &[Known], mut test: Test) -> Test {
    for known in list.iter().filter(|known| known.test == test.name) {
        match test.verdict {
            Verdict::Fail if test.why.contains(&known.says) => {
                test.verdict = Verdict::Skip;
                test.why = format!("fails as known: {}", known.why);
                break;
            }
            Verdict::Pass if !known.sometimes => {
                test.verdict = Verdict::Fail;
                test.why = "passes now: take it off lab/hosts/known.toml".into();
                break;
            }
            _ => {}
        }
    }
    test
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Kind, Known, Test, Verdict, all, judged};

    fn after(verdict: Verdict, why: &str, sometimes: bool) -> (Verdict, String) {
        let known = Known {
            test: "a/b".into(),
            machine: Kind::Vmx,
            module: None,
            cpus: 0,
            unless: None,
            says: "error 3".into(),
            why: "the emulator".into(),
            sometimes,
        };
        let test = Test { name: "a/b".into(), verdict, time: Duration::ZERO, why: why.into() };
        let test = judged(&[known], test);
        (test.verdict, test.why)
    }

    /// The list can be read, and gives a reason for everything.
    #[test]
    fn the_list_is_readable() {
        assert!(all().unwrap().iter().all(|known| !known.why.is_empty() && !known.says.is_empty()));
    }

    /// Only the known failure is excused; another one of the same test is news.
    #[test]
    fn only_the_known_way_is_excused() {
        let excused = after(Verdict::Fail, "internal error 3", false);
        assert_eq!((excused.0, excused.1.contains("the emulator")), (Verdict::Skip, true));
        assert_eq!(after(Verdict::Fail, "internal error 4", false).0, Verdict::Fail);
    }

    /// A test that starts to pass is reported, unless it passes now and then.
    #[test]
    fn a_passing_test_is_news() {
        assert_eq!(after(Verdict::Pass, "", false).0, Verdict::Fail);
        assert_eq!(after(Verdict::Pass, "", true).0, Verdict::Pass);
    }
}
