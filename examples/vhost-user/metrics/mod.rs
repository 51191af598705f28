//! `--metrics`: counters in Prometheus' text format over HTTP.
//!
//! `collect` asks the devices, `text` writes the format, `http` answers.

mod collect;
mod http;
mod text;

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

pub(crate) use collect::Source;
use http::Server;

/// Where counters are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// At a TCP address; port 0 is any that is free.
    Tcp(SocketAddr),
    /// On a Unix socket.
    Unix(PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(address) => Ok(Self::Tcp(address)),
            // A host's name or a lone port is no path by mistake.
            Err(_) if text.contains('/') => {
                let Ok(path) = text.parse::<PathBuf>().map_err(|never: Infallible| match never {});
                Ok(Self::Unix(path))
            }
            Err(_) => Err(format!(
                "'{text}' is neither an address and a port, such as 127.0.0.1:9100 or [::1]:9100, nor a path with a slash, such as ./metrics.sock"
            )),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}/metrics"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The listening end; a Unix socket is gone with this value.
#[derive(Debug)]
pub(crate) struct Metrics(Server);

impl Metrics {
    /// Listens, and answers nobody yet.
    pub(crate) fn bind(address: &Address) -> io::Result<Self> {
        Server::bind(address).map(Self)
    }

    /// Where it listens: the port is known now.
    pub(crate) fn address(&self) -> &Address {
        self.0.address()
    }

    /// Answers from now on, on threads that end with the process.
    pub(crate) fn serve(&self, source: Arc<Source>) -> io::Result<()> {
        self.0.serve(Arc::new(move || source.page()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_one_or_the_other() {
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        assert_eq!("127.0.0.1:9100".parse(), tcp("127.0.0.1:9100"));
        assert_eq!("[::1]:0".parse(), tcp("[::1]:0"));
        assert_eq!("/run/m".parse(), Ok(Address::Unix("/run/m".into())));
        for wrong in ["", "9100", "localhost:9100", "127.0.0.1", "metrics.sock"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}
