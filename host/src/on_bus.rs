//! For tests: a connection to a bus.

use bus::Bus;
use bus::broker::Broker;

/// As the lattice "main"; nobody need listen at `url`.
pub(crate) async fn connect_to(url: &str) -> Bus {
    let config = bus::Config {
        urls: vec![url.to_owned()],
        credentials: None,
        token: None,
        tls_ca: None,
        tls_cert: None,
        tls_key: None,
        name: "test".into(),
        lattice: "main".parse().unwrap(),
    };
    Bus::connect(&config).await.unwrap()
}

/// The same, when it is up.
pub(crate) async fn connect(broker: &Broker) -> Bus {
    let bus = connect_to(&broker.addr().to_string()).await;
    bus.connection().wait_for(|connection| connection.up).await.unwrap();
    bus
}
