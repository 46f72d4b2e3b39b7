//! Who may listen where: on loopback as it is, beyond it with TLS only. Pure.

use std::net::{Ipv4Addr, SocketAddr};

/// An address to listen on: `127.0.0.1:7400`, `[::1]:7400`, `localhost:7400`; port 0 picks a free one.
pub(crate) fn parse(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| {
        "not an address to listen on: write IP:PORT, as 127.0.0.1:7400 (port 0 picks a free one)".to_owned()
    })
}

/// Refuses to offer anything unencrypted to other machines. `flag` is what was typed for this address.
pub(crate) fn check(flag: &str, address: SocketAddr, has_tls: bool) -> Result<(), String> {
    if has_tls || is_loopback(address) {
        return Ok(());
    }
    // A scheduler can make itself a certificate; browsers would not know that of an ingress.
    let own = if flag == "--api" { " (or --own-tls)" } else { "" };
    Err(format!(
        "{flag} {address} is reachable from other machines, without TLS: \
         add --tls-cert FILE --tls-key FILE{own}, or listen on 127.0.0.1:{}",
        address.port()
    ))
}

/// The embedded broker speaks no TLS at all.
#[cfg(all(feature = "host", feature = "scheduler"))]
pub(crate) fn check_broker(flag: &str, address: SocketAddr) -> Result<(), String> {
    if is_loopback(address) {
        return Ok(());
    }
    Err(format!(
        "{flag} {address} is reachable from other machines, but the embedded broker is for one machine only: \
         listen on 127.0.0.1:{}, or run nats-server with TLS and name it with --nats tls://HOST:4222",
        address.port()
    ))
}

/// `::ffff:127.0.0.1` is loopback too.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_needs_no_tls() {
        for text in ["127.0.0.1:7400", "127.8.8.8:0", "[::1]:1", "[::ffff:127.0.0.1]:1", "localhost:7400"] {
            let address = parse(text).unwrap();
            assert_eq!(check("--api", address, false), Ok(()), "{text}");
        }
    }

    #[test]
    fn beyond_loopback_without_tls_names_the_flag_and_the_next_step() {
        for text in ["0.0.0.0:7400", "[::]:7400", "10.0.0.1:7400", "[::ffff:10.0.0.1]:7400"] {
            let address = parse(text).unwrap();
            let error = check("--api", address, false).unwrap_err();
            assert!(error.starts_with("--api ") && error.contains("--tls-cert FILE --tls-key FILE"), "{error}");
            assert!(error.contains("127.0.0.1:7400"), "{error}");
            assert_eq!(check("--api", address, true), Ok(()));
        }
    }

    #[cfg(all(feature = "host", feature = "scheduler"))]
    #[test]
    fn the_embedded_broker_never_leaves_loopback() {
        assert_eq!(check_broker("--bus", parse("[::1]:4222").unwrap()), Ok(()));
        let error = check_broker("--bus", parse("0.0.0.0:4222").unwrap()).unwrap_err();
        assert!(error.starts_with("--bus 0.0.0.0:4222") && error.contains("--nats tls://"), "{error}");
    }

    #[test]
    fn what_is_no_address_is_told_what_would_be() {
        for text in ["", "7400", ":7400", "localhost", "localhost:x", "example.org:1", "127.0.0.1:70000"] {
            assert!(parse(text).unwrap_err().contains("127.0.0.1:7400"), "{text}");
        }
    }
}
