//! The other side of the socket: `--tell SOCKET REQUEST`.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Sends one request, and gives back the reply without the end of its line.
pub(crate) fn tell(socket: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request.trim_end().as_bytes())?;
    stream.write_all(b"\n")?;
    let mut reply = String::new();
    if BufReader::new(stream).read_line(&mut reply)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it ended without a reply"));
    }
    reply.truncate(reply.trim_end().len());
    Ok(reply)
}
