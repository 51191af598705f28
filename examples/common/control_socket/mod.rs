//! `--control SOCKET`: a running program is told what to do by lines of JSON on a Unix socket.
//!
//! Each line of a client is a request, and each gets a line in reply: `{"ok":…}`, or `{"error":"one sentence"}`.
//! `request` reads requests, the program's [`Serve`] carries them out, `client` is the other side (`--tell`).

mod client;
pub(crate) mod request;

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(crate) use client::tell;
use request::{LONGEST_LINE, too_long};

use super::socket::Socket;

/// How many clients are served at once.
const MOST_CLIENTS: usize = 8;
/// How long a client may take to accept a reply.
const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a request.
#[derive(Debug)]
pub(crate) struct Reply<E> {
    /// What the client is told.
    pub(crate) result: Result<Value, String>,
    /// The end of the program, once the client was told.
    pub(crate) end: Option<E>,
}

impl<E> From<Result<Value, String>> for Reply<E> {
    fn from(result: Result<Value, String>) -> Self {
        Self { result, end: None }
    }
}

impl<E> Reply<E> {
    /// The line.
    pub(crate) fn line(&self) -> String {
        let value = match &self.result {
            Ok(value) => json!({ "ok": value }),
            Err(error) => json!({ "error": error }),
        };
        format!("{value}\n")
    }
}

/// Carries out requests. Called from several threads.
pub(crate) trait Serve: Send + Sync + 'static {
    /// What can be asked for.
    type Request: DeserializeOwned;
    /// Why the program ends.
    type End;

    /// Carries one out.
    fn serve(&self, request: Self::Request) -> Reply<Self::End>;
    /// Ends the program.
    fn end(&self, cause: Self::End);
}

/// The socket; it is gone with this value.
#[derive(Debug)]
pub(crate) struct ControlSocket(Socket);

impl ControlSocket {
    /// A socket at `path`, whose clients wait until they are served.
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        Socket::bind(path).map(Self)
    }

    /// Serves clients from now on, on threads that end with the process.
    pub(crate) fn serve<S: Serve>(&self, server: Arc<S>) -> io::Result<()> {
        let listener = self.0.listener()?;
        let clients = Arc::new(AtomicUsize::new(0));
        thread::Builder::new().name("control".into()).spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(stream) => admit(stream, &server, &clients),
                    // Too many open files, say: not again and again at full speed.
                    Err(_) => thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
        Ok(())
    }
}

/// Serves a client on a thread of its own, unless there are too many.
fn admit<S: Serve>(mut stream: UnixStream, server: &Arc<S>, clients: &Arc<AtomicUsize>) {
    let _ = stream.set_write_timeout(Some(PATIENCE));
    let place = Place(clients.clone());
    if place.0.fetch_add(1, Ordering::SeqCst) >= MOST_CLIENTS {
        let reply = Reply::<S::End>::from(Err(format!("{MOST_CLIENTS} clients are being served already")));
        let _ = stream.write_all(reply.line().as_bytes());
        return;
    }
    let server = server.clone();
    let serving = move || {
        let _place = place;
        // A client that vanishes is nobody's trouble.
        let _ = converse(&stream, &*server);
    };
    // Where there is no thread for it, the client finds the connection closed.
    let _ = thread::Builder::new().name("control-client".into()).spawn(serving);
}

/// A client's place among those that are served.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Answers line by line, until the client leaves or sends a line that is too long.
fn converse<S: Serve>(stream: &UnixStream, server: &S) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut line = Vec::new();
    loop {
        line.clear();
        let got = reader.by_ref().take(LONGEST_LINE as u64 + 1).read_until(b'\n', &mut line)?;
        if got == 0 {
            return Ok(());
        }
        let ended = line.pop_if(|last| *last == b'\n').is_some();
        if !ended && line.len() > LONGEST_LINE {
            return writer.write_all(Reply::<S::End>::from(Err(too_long())).line().as_bytes());
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let reply = match request::parse(&line) {
            Ok(request) => server.serve(request),
            Err(error) => Err(error).into(),
        };
        let told = writer.write_all(reply.line().as_bytes());
        if let Some(cause) = reply.end {
            server.end(cause);
        }
        told?;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicBool;

    use iovirt::core::test_utils::{Rng, seed_or};
    use serde::Deserialize;

    use super::*;

    /// Remembers what it was asked for, and that it was to end.
    #[derive(Default)]
    struct Echo(Mutex<Vec<Request>>, AtomicBool);

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
    enum Request {
        Stats {},
        Resume {},
        Quit {},
    }

    #[derive(Debug)]
    struct Quit;

    impl Serve for Echo {
        type Request = Request;
        type End = Quit;

        fn serve(&self, request: Request) -> Reply<Quit> {
            let reply = match &request {
                Request::Resume {} => Err("it does not pause".to_owned()).into(),
                Request::Quit {} => Reply { result: Ok(json!("bye")), end: Some(Quit) },
                Request::Stats {} => Ok(json!({ "seen": true })).into(),
            };
            self.0.lock().unwrap().push(request);
            reply
        }

        fn end(&self, _: Quit) {
            self.1.store(true, Ordering::SeqCst);
        }
    }

    fn socket() -> (tempfile::TempDir, PathBuf, Arc<Echo>, ControlSocket) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control");
        let echo = Arc::new(Echo::default());
        let socket = ControlSocket::bind(&path).unwrap();
        socket.serve(echo.clone()).unwrap();
        (folder, path, echo, socket)
    }

    #[test]
    fn each_line_gets_a_line() {
        let (_folder, path, echo, socket) = socket();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let mut client = UnixStream::connect(&path).unwrap();
        client
            .write_all(b"{\"do\":\"stats\"}\n\n{\"do\":\"resume\"}\nnonsense\n{\"do\":\"quit\"}\n")
            .unwrap();
        let lines: Vec<String> = BufReader::new(&client).lines().take(4).map(Result::unwrap).collect();
        assert_eq!(lines[0], r#"{"ok":{"seen":true}}"#);
        assert_eq!(lines[1], r#"{"error":"it does not pause"}"#);
        assert!(lines[2].starts_with(r#"{"error":"this is no request: "#), "{}", lines[2]);
        assert_eq!(lines[3], r#"{"ok":"bye"}"#);
        // Only once the client was told.
        while !echo.1.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        assert_eq!(tell(&path, "{\"do\":\"stats\"}").unwrap(), r#"{"ok":{"seen":true}}"#);
        assert!(echo.0.lock().unwrap().ends_with(&[Request::Stats {}]));
        // The last line of a client may lack its end.
        drop(client);
        let mut client = UnixStream::connect(&path).unwrap();
        client.write_all(b"{\"do\":\"stats\"}").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut all = String::new();
        client.read_to_string(&mut all).unwrap();
        assert_eq!(all, "{\"ok\":{\"seen\":true}}\n");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_line_without_end_and_too_many_clients_are_refused() {
        let (_folder, path, _, _socket) = socket();
        let mut client = UnixStream::connect(&path).unwrap();
        let _ = client.write_all(&vec![b'{'; LONGEST_LINE + 1]);
        let mut reply = String::new();
        BufReader::new(&client).read_line(&mut reply).unwrap();
        assert_eq!(reply, Reply::<Quit>::from(Err(too_long())).line());
        drop(client);
        let clients: Vec<_> = (0..2 * MOST_CLIENTS)
            .map(|_| {
                let mut client = UnixStream::connect(&path).unwrap();
                let _ = client.write_all(b"{\"do\":\"stats\"}\n");
                let mut reply = String::new();
                let _ = BufReader::new(&client).read_line(&mut reply);
                (client, reply)
            })
            .collect();
        let served = clients.iter().filter(|(_, reply)| reply.contains("seen")).count();
        // The first client's thread may not have ended when the others came.
        assert!((MOST_CLIENTS - 1..=MOST_CLIENTS).contains(&served), "{served}");
    }

    #[test]
    fn any_stream_of_bytes_is_survived() {
        let (_folder, path, _, _socket) = socket();
        let mut rng = Rng::new(seed_or(0x50c));
        for _ in 0..20 {
            let mut client = UnixStream::connect(&path).unwrap();
            let noise: Vec<u8> = (0..rng.below(4096)).map(|_| rng.next_u64() as u8).collect();
            let _ = client.write_all(&noise);
        }
        while !tell(&path, "{\"do\":\"stats\"}").is_ok_and(|reply| reply.contains("seen")) {
            thread::yield_now();
        }
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_or_a_file_is_not() {
        let (folder, path, _, _socket) = socket();
        assert!(ControlSocket::bind(&path).is_err());
        assert!(path.exists());
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(ControlSocket::bind(&file).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let dead = folder.path().join("dead");
        drop(UnixListener::bind(&dead).unwrap());
        ControlSocket::bind(&dead).unwrap();
    }
}
