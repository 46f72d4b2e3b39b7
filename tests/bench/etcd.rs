//! etcd as the bench asks it: members as processes, and the two requests of its gRPC API that are needed here, with the
//! field numbers of its `rpc.proto`.

use crate::process::{Process, free_addr};
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use tonic::Request;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

/// One member.
pub(crate) struct Member {
    pub(crate) process: Process,
    pub(crate) api: String,
    arguments: Vec<String>,
    binary: PathBuf,
    dir: PathBuf,
}

/// A cluster of so many, with their data beneath `dir`.
pub(crate) fn start(binary: &Path, dir: &Path, count: usize) -> Result<Vec<Member>> {
    start_with(binary, dir, count, &[])
}

/// The same with further arguments.
pub(crate) fn start_with(binary: &Path, dir: &Path, count: usize, more: &[&str]) -> Result<Vec<Member>> {
    let mut addresses = Vec::new();
    for number in 0..count {
        addresses.push((format!("m{number}"), format!("http://{}", free_addr()?), format!("http://{}", free_addr()?)));
    }
    let all: Vec<String> = addresses.iter().map(|(name, peer, _)| format!("{name}={peer}")).collect();
    let members = addresses.iter().map(|(name, peer, api)| {
        let data = dir.join(name).display().to_string();
        let arguments = [
            ["--name", name],
            ["--data-dir", &data],
            ["--listen-peer-urls", peer],
            ["--initial-advertise-peer-urls", peer],
            ["--listen-client-urls", api],
            ["--advertise-client-urls", api],
            ["--initial-cluster", &all.join(",")],
            ["--logger", "zap"],
            ["--log-level", "error"],
        ];
        let arguments = arguments.into_iter().flatten().chain(more.iter().copied()).map(str::to_owned).collect();
        Member::start(binary, dir.join(format!("{name}.dir")), api.clone(), arguments)
    });
    // All of them are started before any is waited for: it takes most of them to serve.
    members.collect()
}

impl Member {
    fn start(binary: &Path, dir: PathBuf, api: String, arguments: Vec<String>) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| format!("can not make {}", dir.display()))?;
        let process = Process::start(Command::new(binary).args(&arguments), dir.join("etcd.log"))?;
        Ok(Self { process, api, arguments, binary: binary.to_owned(), dir })
    }

    /// After its process was killed.
    pub(crate) fn again(&self) -> Result<Self> {
        Self::start(&self.binary, self.dir.clone(), self.api.clone(), self.arguments.clone())
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusResponse {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

async fn unary<Q, A>(channel: Channel, path: &'static str, request: Q) -> Result<A>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.context("etcd does not take requests")?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(path), codec).await;
    Ok(answer.with_context(|| format!("etcd refused {path}"))?.into_inner())
}

/// Writes one key; resolves when it is committed.
pub(crate) async fn put(channel: Channel, key: &str, value: Vec<u8>) -> Result<()> {
    let request = PutRequest { key: key.as_bytes().to_vec(), value };
    unary::<_, Empty>(channel, "/etcdserverpb.KV/Put", request).await.map(drop)
}

/// Whether this member leads.
pub(crate) async fn leads(channel: Channel) -> Result<bool> {
    let status: StatusResponse = unary(channel, "/etcdserverpb.Maintenance/Status", Empty {}).await?;
    Ok(status.leader != 0 && status.header.is_some_and(|header| header.member_id == status.leader))
}
