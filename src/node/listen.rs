//! Opens the ports before anything on disk is touched, so that a port in use changes nothing.

use std::io;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::ToSocketAddrs;

use anyhow::Context;
use anyhow::anyhow;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

use crate::config::BindAddress;

/// Listens on every address; optional ones that this machine lacks are passed over.
///
/// # Errors
/// One line that names the address and says what to do.
pub fn listen_on(
    addresses: &[BindAddress],
    port: u16,
    backlog: u32,
    directive: &str,
) -> anyhow::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    for address in addresses {
        match listen(&address.host, port, backlog) {
            Ok(listener) => listeners.push(listener),
            Err(error) if address.is_optional && is_lacking(&error) => {}
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(anyhow!(
                    "{}:{port} is in use: stop what listens there, or choose another {directive}",
                    address.host
                ));
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot listen on {}:{port} ({directive})", address.host));
            }
        }
    }
    if listeners.is_empty() {
        return Err(anyhow!("no address to listen on for {directive} {port}: check the bind directive"));
    }
    Ok(listeners)
}

fn listen(host: &str, port: u16, backlog: u32) -> io::Result<TcpListener> {
    let address: SocketAddr = (host, port)
        .to_socket_addrs()?
        .next()
        .ok_or_else(|| io::Error::from(io::ErrorKind::AddrNotAvailable))?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Linux: the kernel was built or started without this family of addresses.
const EAFNOSUPPORT: i32 = 97;

/// True when the machine has no such address or no such family.
fn is_lacking(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, is_optional: bool) -> BindAddress {
        BindAddress { host: host.to_owned(), is_optional }
    }

    #[test]
    fn a_port_in_use_is_one_clear_line() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let error = listen_on(&[address("127.0.0.1", false)], port, 16, "port").unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            format!("127.0.0.1:{port} is in use: stop what listens there, or choose another port")
        );
    }

    #[test]
    fn an_optional_address_that_is_lacking_is_passed_over() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let listeners =
            listen_on(&[address("127.0.0.1", false), address("203.0.113.7", true)], free, 16, "port");
        assert_eq!(listeners.unwrap().len(), 1);
        assert!(listen_on(&[address("203.0.113.7", true)], free, 16, "port").is_err());
    }
}
