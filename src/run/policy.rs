//! `--policy FILE`: what a host takes away from what manifests grant. A file that is wrong is no policy: the host does not
//! start.

use crate::failure::Failure;
use crate::local;
use clap::Args;
use proto::policy::{POLICY_BYTES_MAX, Policy};
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PolicyArgs {
    /// YAML file with what this host does not let manifests grant, whatever they say
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

impl PolicyArgs {
    /// What the file says, or every problem in it; without a file, no restriction.
    pub(crate) fn load(&self) -> Result<Policy, Failure> {
        let Some(path) = &self.policy else { return Ok(Policy::default()) };
        let name = path.display().to_string();
        let refuse = |why: String| Failure::Refused(format!("--policy {name}: {why}; name a file this user can read"));
        let limit = u64::try_from(POLICY_BYTES_MAX).unwrap_or(u64::MAX) + 1;
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(|e| refuse(e.to_string()))?;
        file.take(limit).read_to_end(&mut bytes).map_err(|e| refuse(e.to_string()))?;
        match Policy::parse(&bytes, &name) {
            Ok(policy) => Ok(policy),
            Err(problems) => {
                let sources = BTreeMap::from([(name, String::from_utf8_lossy(&bytes).into_owned())]);
                local::refuse(&problems, &sources).and(Ok(Policy::default()))
            }
        }
    }
}
