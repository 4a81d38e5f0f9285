//! HTTP/1.1 as pure functions (RFC 9112): a request out of a buffer, an answer into bytes.
//!
//! It knows no sockets. Bounds are checked before there is anything to keep: a head of at most [`MAX_HEAD`] bytes, a body
//! of at most [`MAX_BODY`], announced by Content-Length. Chunked bodies are refused; JSON that has been written out
//! already has a length.

use std::borrow::Cow;

use serde_json::{Value, json};

/// Most bytes of a request line and its headers.
pub const MAX_HEAD: usize = 16 << 10;
/// Most bytes of a body.
pub const MAX_BODY: usize = 1 << 20;
/// Most headers.
const MAX_HEADERS: usize = 64;
/// What a client that waits for it is told before it sends the body (RFC 9110, 10.1.1).
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// A request, borrowed from the buffer that it was read into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// As sent: methods are case-sensitive.
    pub method: &'a str,
    /// The path of the request target, or whatever else a client makes up.
    pub target: &'a str,
    /// Empty if there is none.
    pub body: &'a [u8],
    /// The client wants to send more requests after this one.
    pub keep_alive: bool,
}

/// What a buffer holds at its front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'a> {
    /// A part of a request.
    Partial {
        /// Bytes of the whole request, as soon as its head is there.
        total: Option<usize>,
        /// The client waits for [`CONTINUE`].
        expects_continue: bool,
    },
    /// A request.
    Complete {
        /// It.
        request: Request<'a>,
        /// Bytes that it takes of the buffer.
        length: usize,
    },
}

/// Bytes that are no request this server takes. Where the next one would begin is unknown: the connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Not HTTP.
    #[error("malformed HTTP: {0}")]
    Malformed(&'static str),
    /// Another version than 1.0 and 1.1.
    #[error("only HTTP/1.0 and HTTP/1.1 are understood")]
    Version,
    /// The head is too long, or has too many headers.
    #[error("the request's head is more than {MAX_HEAD} bytes or {MAX_HEADERS} headers")]
    HeadTooLarge,
    /// The body is too long.
    #[error("the request's body is more than {MAX_BODY} bytes")]
    BodyTooLarge,
    /// The body has no Content-Length.
    #[error("Transfer-Encoding is not supported: send the body with a Content-Length")]
    TransferEncoding,
    /// The client expects something else than [`CONTINUE`].
    #[error("the only expectation that can be met is 100-continue")]
    Expectation,
    /// The client stopped sending in the middle.
    #[error("the request ends too early")]
    Truncated,
}

impl HttpError {
    /// The status code that says so.
    pub fn status(self) -> u16 {
        match self {
            HttpError::Malformed(_) | HttpError::Truncated => 400,
            HttpError::BodyTooLarge => 413,
            HttpError::Expectation => 417,
            HttpError::HeadTooLarge => 431,
            HttpError::TransferEncoding => 501,
            HttpError::Version => 505,
        }
    }
}

/// Looks for a request at the front of `buffer`.
pub fn parse(buffer: &[u8]) -> Result<Parsed<'_>, HttpError> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_length = match head.parse(buffer) {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if buffer.len() < MAX_HEAD => {
            return Ok(Parsed::Partial { total: None, expects_continue: false });
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err(HttpError::HeadTooLarge),
        Err(httparse::Error::Version) => return Err(HttpError::Version),
        Err(error) => return Err(HttpError::Malformed(reason(error))),
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(HttpError::Malformed("no request line"));
    };
    let target = path(target);
    let framing = Framing::read(head.headers, version)?;
    let total = head_length + framing.body;
    let Some(body) = buffer.get(head_length..total) else {
        return Ok(Parsed::Partial { total: Some(total), expects_continue: framing.expects_continue });
    };
    let request = Request { method, target, body, keep_alive: framing.keep_alive };
    Ok(Parsed::Complete { request, length: total })
}

/// A target may name the server, too (RFC 9112, 3.2.2). There is only this one.
fn path(target: &str) -> &str {
    match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    }
}

fn reason(error: httparse::Error) -> &'static str {
    match error {
        httparse::Error::HeaderName => "a header's name",
        httparse::Error::HeaderValue => "a header's value",
        httparse::Error::NewLine => "the end of a line",
        _ => "the request line",
    }
}

/// What the headers say about where the request ends, and what comes after it.
struct Framing {
    body: usize,
    keep_alive: bool,
    expects_continue: bool,
}

impl Framing {
    fn read(headers: &[httparse::Header], version: u8) -> Result<Self, HttpError> {
        let mut length = None;
        let mut framing = Framing { body: 0, keep_alive: version == 1, expects_continue: false };
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            if is("transfer-encoding") {
                return Err(HttpError::TransferEncoding);
            } else if is("content-length") {
                let value = content_length(header.value)?;
                // Two lengths are two opinions about where the next request begins (RFC 9112, 6.3).
                if length.replace(value).is_some_and(|other| other != value) {
                    return Err(HttpError::Malformed("two Content-Lengths"));
                }
            } else if is("connection") {
                for option in header.value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
                    if option.eq_ignore_ascii_case(b"close") {
                        framing.keep_alive = false;
                    } else if option.eq_ignore_ascii_case(b"keep-alive") {
                        framing.keep_alive = true;
                    }
                }
            } else if is("expect") {
                if !header.value.trim_ascii().eq_ignore_ascii_case(b"100-continue") {
                    return Err(HttpError::Expectation);
                }
                // HTTP/1.0 has no interim answers.
                framing.expects_continue = version == 1;
            }
        }
        framing.body = length.unwrap_or(0);
        Ok(framing)
    }
}

/// Digits only: no sign, no list (RFC 9110, 8.6).
fn content_length(value: &[u8]) -> Result<usize, HttpError> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(HttpError::Malformed("Content-Length is not a number"));
    }
    let text = std::str::from_utf8(digits).map_err(|_| HttpError::Malformed("Content-Length is not a number"))?;
    // A number beyond counting is also beyond the bound.
    text.parse().ok().filter(|length| *length <= MAX_BODY).ok_or(HttpError::BodyTooLarge)
}

/// Content of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// JSON.
    Json(Value),
    /// Text of a media type.
    Text {
        /// The media type.
        kind: &'static str,
        /// The text.
        text: String,
    },
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Content, if there is any.
    pub body: Option<Content>,
    /// With status 405: the methods that the path takes.
    pub allow: Cow<'static, str>,
}

impl Response {
    /// 200 with content.
    pub fn ok(body: Value) -> Self {
        Response { status: 200, body: Some(Content::Json(body)), allow: "".into() }
    }

    /// 200 with text of a media type.
    pub fn text(kind: &'static str, text: String) -> Self {
        Response { status: 200, body: Some(Content::Text { kind, text }), allow: "".into() }
    }

    /// 204: done, and nothing to tell.
    pub fn done() -> Self {
        Response { status: 204, body: None, allow: "".into() }
    }

    /// An error in the shape that Firecracker's clients read.
    pub fn fault(status: u16, message: &str) -> Self {
        let body = Content::Json(json!({ "fault_message": message }));
        Response { status, body: Some(body), allow: "".into() }
    }

    /// The bytes to send. With `close` no other answer follows; with `head_only` the content is left out, as a HEAD
    /// request wants it.
    pub fn encode(&self, close: bool, head_only: bool) -> Vec<u8> {
        let connection = if close { "close" } else { "keep-alive" };
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nServer: Bulkhead\r\nConnection: {connection}\r\n",
            self.status,
            phrase(self.status)
        );
        if !self.allow.is_empty() {
            head.push_str(&format!("Allow: {}\r\n", self.allow));
        }
        let Some(body) = &self.body else {
            return (head + "\r\n").into_bytes();
        };
        let (kind, body) = match body {
            Content::Json(value) => ("application/json", Cow::Owned(value.to_string())),
            Content::Text { kind, text } => (*kind, Cow::Borrowed(text.as_str())),
        };
        head.push_str(&format!("Content-Type: {kind}\r\nContent-Length: {}\r\n\r\n", body.len()));
        if !head_only {
            head.push_str(&body);
        }
        head.into_bytes()
    }
}

impl From<HttpError> for Response {
    fn from(error: HttpError) -> Self {
        Response::fault(error.status(), &error.to_string())
    }
}

fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        417 => "Expectation Failed",
        431 => "Request Header Fields Too Large",
        501 => "Not Implemented",
        505 => "HTTP Version Not Supported",
        _ => "Error",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn complete(text: &str) -> (Request<'_>, usize) {
        match parse(text.as_bytes()) {
            Ok(Parsed::Complete { request, length }) => (request, length),
            other => panic!("{text:?}: {other:?}"),
        }
    }

    fn error(text: &str) -> HttpError {
        parse(text.as_bytes()).expect_err(text)
    }

    #[test]
    fn a_request_is_its_method_target_and_body() {
        let text = "PUT /vm HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabcGET / HTTP/1.1\r\n\r\n";
        let (request, length) = complete(text);
        assert_eq!((request.method, request.target, request.body), ("PUT", "/vm", &b"abc"[..]));
        assert_eq!(&text[length..], "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(complete(&text[length..]).0.body, b"");
    }

    #[test]
    fn a_target_may_name_the_server() {
        let target = |target: &str| complete(&format!("GET {target} HTTP/1.1\r\n\r\n")).0.target.to_owned();
        assert_eq!(target("http://localhost/vm/config"), "/vm/config");
        assert_eq!((target("http://localhost"), target("http:///"), target("*")), ("/".into(), "/".into(), "*".into()));
    }

    #[test]
    fn connections_stay_open_as_the_version_and_the_client_say() {
        let keeps = |head: &str| complete(&format!("GET / {head}\r\n\r\n")).0.keep_alive;
        assert!(keeps("HTTP/1.1") && !keeps("HTTP/1.0"));
        assert!(!keeps("HTTP/1.1\r\nConnection: Close"));
        assert!(!keeps("HTTP/1.1\r\nConnection: foo , close"));
        assert!(keeps("HTTP/1.0\r\nConnection: keep-alive"));
    }

    #[test]
    fn group_10_lengths_that_are_none_are_refused() {
        let with = |length: &str| error(&format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"));
        for bad in ["-1", "+1", "0x10", "", "1,1", "1 1", "ten"] {
            assert_eq!(with(bad).status(), 400, "{bad}");
        }
        for huge in [&(MAX_BODY + 1).to_string(), "18446744073709551616", &"9".repeat(5000)] {
            assert_eq!(with(huge), HttpError::BodyTooLarge, "{huge}");
        }
        let two = |a, b| format!("PUT / HTTP/1.1\r\nContent-Length: {a}\r\nContent-Length: {b}\r\n\r\nx");
        assert_eq!(error(&two(1, 2)), HttpError::Malformed("two Content-Lengths"));
        assert_eq!(complete(&two(1, 1)).0.body, b"x");
    }

    #[test]
    fn what_is_not_supported_has_a_status_of_its_own() {
        assert_eq!(error("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n").status(), 501);
        assert_eq!(error("PUT / HTTP/1.1\r\nExpect: miracles\r\n\r\n").status(), 417);
        assert_eq!(error("GET / HTTP/2.0\r\n\r\n").status(), 505);
        assert_eq!(error("GET / FTP/1.1\r\n\r\n").status(), 505);
        assert_eq!(error("GET /\r\n\r\n").status(), 400);
        assert_eq!(error("\x16\x03\x01\x02").status(), 400);
    }

    #[test]
    fn a_head_is_bounded() {
        let long = format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(MAX_HEAD));
        assert_eq!(error(&long), HttpError::HeadTooLarge);
        assert_eq!(error(&(long + "\r\n\r\n")), HttpError::HeadTooLarge);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(error(&many), HttpError::HeadTooLarge);
        // Nothing but line ends, which a server skips (RFC 9112, 2.2), is no way around the bound.
        assert_eq!(error(&"\r\n".repeat(MAX_HEAD)), HttpError::HeadTooLarge);
    }

    #[test]
    fn a_client_that_waits_to_send_is_seen() {
        let head = "PUT / HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
        let partial = Parsed::Partial { total: Some(head.len() + 2), expects_continue: true };
        assert_eq!(parse(head.as_bytes()), Ok(partial));
        assert_eq!(complete(&format!("{head}{{}}")).0.body, b"{}");
        let old = head.replace("1.1", "1.0");
        assert!(matches!(parse(old.as_bytes()), Ok(Parsed::Partial { expects_continue: false, .. })));
    }

    #[test]
    fn answers_say_where_they_end() {
        let text = |response: Response, close, head| String::from_utf8(response.encode(close, head)).unwrap();
        let fault = text(Response::fault(400, "no \"x\""), true, false);
        assert!(
            fault.starts_with("HTTP/1.1 400 Bad Request\r\n") && fault.contains("Connection: close\r\n"),
            "{fault}"
        );
        assert!(fault.ends_with("Content-Length: 28\r\n\r\n{\"fault_message\":\"no \\\"x\\\"\"}"), "{fault}");
        let done = text(Response::done(), false, false);
        assert!(
            done.starts_with("HTTP/1.1 204 ") && !done.contains("Content-") && done.ends_with("\r\n\r\n"),
            "{done}"
        );
        let head = text(Response::ok(json!({})), false, true);
        assert!(head.ends_with("Content-Length: 2\r\n\r\n"), "{head}");
        let plain = text(Response::text("text/plain", "a 1\n".into()), false, false);
        assert!(plain.ends_with("Content-Type: text/plain\r\nContent-Length: 4\r\n\r\na 1\n"), "{plain}");
    }

    /// Bytes that get further than noise does.
    fn almost_requests() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            Just(&b"PUT /drives/a HTTP/1.1\r\n"[..]),
            Just(&b"GET / HTTP/1.0\r\n"[..]),
            Just(&b"Content-Length: 5\r\n"[..]),
            Just(&b"Content-Length: 99999999\r\n"[..]),
            Just(&b"Expect: 100-continue\r\n"[..]),
            Just(&b"Connection: close\r\n"[..]),
            Just(&b"\r\n"[..]),
            Just(&b"{\"a\":"[..]),
            Just(&b"\0"[..]),
        ];
        let noise = proptest::collection::vec(any::<u8>(), 0..8);
        proptest::collection::vec(prop_oneof![8 => piece.prop_map(<[u8]>::to_vec), 1 => noise], 0..24)
            .prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// What a buffer holds does not depend on how it came: a request that is complete stays the same request with
        /// more bytes behind it, and one that is partial was partial with fewer.
        #[test]
        fn group_10_more_bytes_do_not_change_a_request(bytes in almost_requests()) {
            let whole = parse(&bytes);
            for cut in 0..bytes.len() {
                match parse(&bytes[..cut]) {
                    Ok(Parsed::Partial { total, .. }) => prop_assert!(total.is_none_or(|total| total > cut && total <= MAX_HEAD + MAX_BODY)),
                    done => prop_assert_eq!(done, whole),
                }
            }
        }
    }
}
