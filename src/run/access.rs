//! Where the ingress writes its access log.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AccessArgs {
    /// File for the ingress's access log, a line of JSON for each request; - is stdout [default: none is written]
    #[arg(long, value_name = "FILE")]
    pub(crate) access_log: Option<PathBuf>,
}

impl AccessArgs {
    pub(crate) fn target(&self) -> Option<host::ingress::AccessTarget> {
        let path = self.access_log.as_ref()?;
        Some(match path.as_os_str() == "-" {
            true => host::ingress::AccessTarget::Stdout,
            false => host::ingress::AccessTarget::File(path.clone()),
        })
    }
}
