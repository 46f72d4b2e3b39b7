//! Several nats-servers as one bus: a cluster of three of which one ends, and a site on a leaf node that is cut off.
//! Ends with everybody back without an apply.

use crate::harness::{Broker, Lattice, Process, SOON, http, manifests, nats_server, run, throughout, until};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[test]
fn a_cluster_of_buses_loses_one_after_the_other() {
    run("a_cluster_of_buses_loses_one_after_the_other", Broker::Nats, |_| cluster_loses_one());
}

#[test]
fn a_site_behind_a_leaf_node_is_cut_off_and_returns() {
    run("a_site_behind_a_leaf_node_is_cut_off_and_returns", Broker::Nats, |_| leaf_is_cut());
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A nats-server with a configuration of its own.
pub(crate) struct Server {
    name: String,
    pub(crate) port: u16,
    text: String,
    process: Option<Process>,
}

impl Server {
    pub(crate) fn new(name: &str, more: &str) -> Self {
        let port = free_port();
        let text = format!("listen: \"127.0.0.1:{port}\"\nserver_name: {name}\n{more}\n");
        Self { name: name.to_owned(), port, text, process: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub(crate) fn start(&mut self, dir: &Path) {
        let config = dir.join(format!("{}.conf", self.name));
        std::fs::write(&config, &self.text).unwrap();
        let mut process = Process::spawn(&self.name, dir, Command::new(nats_server()).arg("--config").arg(config));
        until("nats-server listens", SOON, || {
            process.assert_alive();
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).ok().map(drop)
        });
        self.process = Some(process);
    }

    fn kill(&mut self) {
        self.process.take().expect("it runs").kill();
    }
}

fn cluster_loses_one() {
    let dir = tempfile::tempdir().unwrap();
    let routes = [free_port(), free_port(), free_port()];
    let all = routes.map(|port| format!("\"nats-route://127.0.0.1:{port}\"")).join(", ");
    let mut servers: Vec<Server> = (1..)
        .zip(routes)
        .map(|(n, port)| {
            let more = format!("cluster {{ name: plant, listen: \"127.0.0.1:{port}\", routes: [{all}] }}");
            Server::new(&format!("nats-{n}"), &more)
        })
        .collect();
    servers.iter_mut().for_each(|server| server.start(dir.path()));
    // Each begins at another one, and knows of all.
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    let beginning_at = |n: usize| [&urls[n % 3], &urls[(n + 1) % 3], &urls[(n + 2) % 3]].map(String::as_str).join(",");
    let mut lattice = Lattice::on(&beginning_at(0));
    for (n, name) in [(1, "b"), (2, "c")] {
        lattice.use_bus(&beginning_at(n));
        lattice.add_host(name, &[], true);
    }
    lattice.until_hosts(&[("a", "ready"), ("b", "ready"), ("c", "ready")]);
    lattice.use_bus(&beginning_at(1));
    lattice.add_host("far", &["kind=far"], false);
    lattice.until_hosts(&[("far", "ready")]);
    lattice.apply(&manifests::Hello { on: "kind: far", ..Default::default() }.write(&lattice));
    lattice.until_spread("hello", "hello", &[("far", 1)], SOON);
    for (n, server) in servers.iter_mut().enumerate() {
        server.kill();
        for name in ["a", "b", "c"] {
            until("it answers by another bus", SOON, || http::answers(lattice.ingress(name), ""));
        }
        throughout("nobody is lost", Duration::from_secs(3), || {
            lattice.items("hosts").iter().all(|host| host["state"] != "lost")
        });
        until("the scheduler is connected to another bus", SOON, || {
            let status = lattice.cli(&["status", "-o", "json"]).json();
            (status["bus"] == "connected" && status["bus_up"] == true).then_some(())
        });
        lattice.until_hosts(&[("a", "ready"), ("b", "ready"), ("c", "ready"), ("far", "ready")]);
        lattice.ok(&["scale", "hello/hello", &(n + 2).to_string()]);
        lattice.until_spread("hello", "hello", &[("far", u64::try_from(n).unwrap() + 2)], SOON);
        server.start(dir.path());
    }
    lattice.assert_alive();
}

/// A wire between two ports that can be cut.
pub(crate) struct Wire {
    pub(crate) port: u16,
    is_cut: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Wire {
    pub(crate) fn to(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let wire =
            Self { port: listener.local_addr().unwrap().port(), is_cut: Arc::default(), streams: Arc::default() };
        let (is_cut, streams) = (wire.is_cut.clone(), wire.streams.clone());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    });
                }
                streams.lock().unwrap().extend([near, far]);
            }
        });
        wire
    }

    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub(crate) fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }
}

fn leaf_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let leaves = free_port();
    let mut hub = Server::new("hub", &format!("leafnodes {{ listen: \"127.0.0.1:{leaves}\", no_advertise: true }}"));
    hub.start(dir.path());
    let wire = Wire::to(leaves);
    let remote = format!("{{ url: \"nats-leaf://127.0.0.1:{}\" }}", wire.port);
    let mut site = Server::new("site", &format!("leafnodes {{ reconnect: \"1s\", remotes: [{remote}] }}"));
    site.start(dir.path());

    let mut lattice = Lattice::on(&hub.url());
    lattice.use_bus(&site.url());
    lattice.add_host("edge", &["kind=edge"], true);
    lattice.until_hosts(&[("a", "ready"), ("edge", "ready")]);
    lattice.apply(&manifests::Hello { on: "kind: edge", replicas: 2, ..Default::default() }.write(&lattice));
    let (near, edge) = (lattice.ingress("a"), lattice.ingress("edge"));
    until("it answers across the leaf", SOON, || http::answers(near, ""));

    wire.cut();
    lattice.until_hosts_within(&[("a", "ready"), ("edge", "lost")], Duration::from_secs(40));
    // The site goes on by itself, and here it is said what is missing.
    assert!(http::answers(edge, "").is_some(), "the site serves what it runs");
    let app = lattice.items_of("apps", "hello").remove(0);
    assert!(app["state"] != "running" && !app["message"].as_str().unwrap().is_empty(), "{app}");
    lattice.ok(&["scale", "hello/hello", "3"]);

    wire.mend();
    lattice.until_hosts_within(&[("edge", "ready")], Duration::from_secs(40));
    lattice.until_spread("hello", "hello", &[("edge", 3)], SOON);
    until("it answers across the leaf again", SOON, || http::answers(near, ""));
    // The site's own server restarts.
    site.kill();
    site.start(dir.path());
    lattice.until_hosts_within(&[("edge", "ready")], Duration::from_secs(40));
    until("it answers after the restart of the leaf", SOON, || http::answers(near, ""));
    lattice.assert_alive();
}
