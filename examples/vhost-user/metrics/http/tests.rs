use std::net::SocketAddr;

use iovirt::core::test_utils::{Rng, rounds_or, seed_or};

use super::*;

fn server() -> (Server, SocketAddr) {
    let server = Server::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp(address) = *server.address() else { panic!("a TCP address") };
    server.serve(Arc::new(|| "a 1\n".to_owned())).unwrap();
    (server, address)
}

/// All that comes back for these bytes.
fn ask(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_page_is_served() {
    let (_server, address) = server();
    let page = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n");
    assert_eq!(answer, format!("{page}a 1\n"));
    assert_eq!(ask(address, b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n"), page);
    // Byte by byte, with the end across several reads.
    let mut stream = TcpStream::connect(address).unwrap();
    for byte in b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" {
        stream.write_all(&[*byte]).unwrap();
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("a 1\n"), "{answer}");
}

#[test]
fn what_is_not_asked_for_rightly_is_refused() {
    let host = "Host: x\r\n\r\n";
    for (head, status) in [
        (format!("POST /metrics HTTP/1.1\r\n{host}"), "405"),
        (format!("GET / HTTP/1.1\r\n{host}"), "404"),
        (format!("GET /metrics/ HTTP/1.1\r\n{host}"), "404"),
        (format!("GET /metrics HTTP/2.0\r\n{host}"), "505"),
        ("GET /metrics HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (format!("GET /metrics HTTP/1.1\r\nHost: y\r\n{host}"), "400"),
        (format!("GET  /metrics HTTP/1.1\r\n{host}"), "400"),
        (format!("GET /metrics\r\n{host}"), "400"),
        (format!("GET /metrics HTTP/1.1 x\r\n{host}"), "400"),
        (format!("G(T /metrics HTTP/1.1\r\n{host}"), "400"),
        (format!("GET /metrics HTTP/1.1\r\nno header\r\n{host}"), "400"),
        (format!("GET /metrics HTTP/1.1\r\na : b\r\n{host}"), "400"),
        (format!("GET /metrics HTTP/1.1\r\na: b\n c\r\n{host}"), "400"),
        (format!("GET /metrics HTTP/1.1\r\nContent-Length: 1\r\n{host}x"), "413"),
        (format!("GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n{host}0\r\n\r\n"), "413"),
        (format!("GET /metrics HTTP/1.1\r\na: {}\r\n{host}", "x".repeat(LONGEST_HEAD)), "431"),
        ("x".repeat(LONGEST_HEAD + 1), "431"),
        ("hello\r\n\r\n".to_owned(), "400"),
    ] {
        let (_server, address) = server();
        let answer = ask(address, head.as_bytes());
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{head:?}: {answer}");
    }
}

#[test]
fn only_a_few_are_served_at_once() {
    let (_server, address) = server();
    // Who says nothing holds a place.
    let silent: Vec<_> = (0..MOST_CLIENTS).map(|_| TcpStream::connect(address).unwrap()).collect();
    let refused = ask_reading(address);
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    drop(silent);
    while !ask_reading(address).starts_with("HTTP/1.1 200 ") {
        thread::yield_now();
    }
}

/// As [`ask`], of a server that may have closed the connection before it read the request.
fn ask_reading(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// Any bytes, and a request with bytes changed, cut out and put in, are read or refused.
#[test]
fn any_bytes_are_survived() {
    let mut rng = Rng::new(seed_or(0x4774));
    let (mut read, mut refused) = (0, 0);
    for _ in 0..rounds_or(20_000) {
        let mut head = b"GET /metrics HTTP/1.1\r\nHost: a\r\nAccept: b".to_vec();
        for _ in 0..rng.below(3) {
            let at = rng.below(head.len() as u64) as usize;
            match rng.below(3) {
                0 => head.insert(at, rng.next_u64() as u8),
                1 => drop(head.remove(at)),
                _ => head[at] = rng.next_u64() as u8,
            }
        }
        match Request::parse(&head) {
            Ok(_) => read += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
}

/// Reads give what comes as it comes.
#[test]
fn a_client_that_leaves_early_is_not_answered() {
    let (here, mut there) = UnixStream::pair().unwrap();
    there.write_all(b"GET /metrics").unwrap();
    drop(there);
    let deadline = Instant::now() + PATIENCE;
    assert_eq!(read_head(&mut { here }, deadline).unwrap(), Head::Closed);
    let (mut here, _there) = UnixStream::pair().unwrap();
    assert_eq!(read_head(&mut here, Instant::now()).unwrap(), Head::TooSlow);
}
