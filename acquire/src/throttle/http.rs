//! A POST to a URL: `{"command": "hold" | "slow" | "go", "fraction": 0.5 | null, "reason": "...", "run": "..."}`.
//!
//! 2xx: done. 409 (not now) and 501 (never): refused, with the first line of the body as the reason. All else is a failure and
//! is tried again. One connection for each request; plain HTTP, for a program on the microscope's machine or its own network.

use std::str::FromStr;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Request as HttpRequest, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{Request, Throttle, ThrottleError, first_line};

const NAME: &str = "http hook";
/// Longest answer that is read, bytes.
const ANSWER: usize = 16 << 10;

/// A checked URL.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    uri: Uri,
    host: String,
    port: u16,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, String> {
        let example = "give one such as http://scope:8080/throttle";
        let uri: Uri = url.parse().map_err(|e| format!("{url:?} is not a URL: {e}\n{example}"))?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(format!("{url:?}: only plain http is spoken\n{example}")),
            _ => return Err(format!("{url:?} is not an http URL\n{example}")),
        }
        if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
            return Err(format!("a URL with a name or password in it is not used\n{example}"));
        }
        let host = uri.host().filter(|h| !h.is_empty()).ok_or_else(|| format!("{url:?} names no host\n{example}"))?;
        let (host, port) = (host.trim_matches(['[', ']']).to_owned(), uri.port_u16().unwrap_or(80));
        Ok(Self { uri, host, port })
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct HttpHook {
    target: Target,
    run: String,
}

impl HttpHook {
    /// `run` is the name of the acquisition, sent along.
    pub fn new(target: Target, run: &str) -> Self {
        Self { target, run: run.into() }
    }

    /// Status and body.
    async fn post(&self, body: String) -> Result<(StatusCode, Bytes), String> {
        let (to, port) = (self.target.host.as_str(), self.target.port);
        let stream = TcpStream::connect((to, port)).await.map_err(|e| format!("cannot connect to {to}:{port}: {e}"))?;
        let said = |e: hyper::Error| format!("{}: {e}", self.target.uri);
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
        let authority = self.target.uri.authority().map_or(to, |a| a.as_str());
        let request = HttpRequest::post(self.target.uri.path_and_query().map_or("/", |p| p.as_str()))
            .header("host", authority)
            .header("content-type", "application/json")
            .header("connection", "close")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| e.to_string())?;
        let exchange = async move {
            let answer = sender.send_request(request).await.map_err(said)?;
            let status = answer.status();
            // A longer or broken body does not change what the status says.
            let body = Limited::new(answer.into_body(), ANSWER).collect().await.map(|b| b.to_bytes());
            Ok((status, body.unwrap_or_default()))
        };
        tokio::pin!(exchange, connection);
        tokio::select! {
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(e) => Err(said(e)),
            },
        }
    }
}

impl Throttle for HttpHook {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn ask(&mut self, request: &Request) -> Result<String, ThrottleError> {
        let wish = request.wish;
        let body = serde_json::json!({
            "command": wish.word(), "fraction": wish.fraction(), "reason": &*request.reason, "run": &self.run,
        });
        let failed = |why| ThrottleError::Failed { hook: NAME, wish, why };
        let (status, answer) = self.post(body.to_string()).await.map_err(failed)?;
        let said = match first_line(&answer) {
            line if line.is_empty() => status.to_string(),
            line => format!("{status}: {line}"),
        };
        match status {
            s if s.is_success() => Ok(said),
            StatusCode::CONFLICT | StatusCode::NOT_IMPLEMENTED => {
                Err(ThrottleError::Refused { hook: NAME, wish, why: said })
            }
            _ => Err(failed(format!("{} answered {said}; wanted 2xx, or 409 or 501 for a refusal", self.target.uri))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::throttle::Wish;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    /// Answers one request and gives what it read.
    async fn exchange(answer: &'static str, wish: Wish) -> (Result<String, ThrottleError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let url = format!("http://{}/throttle?scope=1", listener.local_addr().expect("bound"));
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("called");
            let mut read = Vec::new();
            while !read.ends_with(b"}") {
                let n = stream.read_buf(&mut read).await.expect("reads");
                assert!(n > 0, "ended early: {}", String::from_utf8_lossy(&read));
            }
            stream.write_all(answer.as_bytes()).await.expect("writes");
            String::from_utf8(read).expect("text")
        });
        let mut hook = HttpHook::new(url.parse().expect("a URL"), "demo");
        let said = hook.ask(&Request { wish, reason: "spool \"full\"".into() }).await;
        (said, server.await.expect("no panic"))
    }

    #[tokio::test]
    async fn what_is_posted_says_command_fraction_reason_and_run() {
        let (said, sent) = exchange("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nslowed\n", Wish::Slow(0.5)).await;
        assert_eq!(said.expect("done"), "200 OK: slowed");
        assert!(sent.starts_with("POST /throttle?scope=1 HTTP/1.1\r\n"), "{sent}");
        let body: serde_json::Value =
            serde_json::from_str(sent.split("\r\n\r\n").nth(1).expect("a body")).expect("JSON");
        let wanted = serde_json::json!({"command": "slow", "fraction": 0.5, "reason": "spool \"full\"", "run": "demo"});
        assert_eq!(body, wanted);
    }

    #[tokio::test]
    async fn a_refusal_a_failure_and_a_dead_server_are_three_things() {
        let refused = exchange("HTTP/1.1 409 Conflict\r\ncontent-length: 11\r\n\r\ncalibrating", Wish::Hold).await.0;
        assert!(
            matches!(&refused, Err(ThrottleError::Refused { why, .. }) if why.contains("calibrating")),
            "{refused:?}"
        );
        let failed = exchange("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n", Wish::Hold).await.0;
        assert!(matches!(&failed, Err(ThrottleError::Failed { why, .. }) if why.contains("500")), "{failed:?}");
        let broken = exchange("neither HTTP nor anything\r\n\r\n", Wish::Hold).await.0;
        assert!(matches!(broken, Err(ThrottleError::Failed { .. })), "{broken:?}");
        // A port that nobody listens at: bound and given back.
        let free = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound");
        let mut hook = HttpHook::new(format!("http://{free}").parse().expect("a URL"), "demo");
        let dead = hook.ask(&Request { wish: Wish::Go, reason: "".into() }).await;
        assert!(matches!(&dead, Err(ThrottleError::Failed { why, .. }) if why.contains("cannot connect")), "{dead:?}");
    }

    #[test]
    fn urls_that_cannot_be_used_are_told_with_what_to_give() {
        for url in
            ["", "scope:8080", "https://scope/x", "ftp://scope/x", "http://", "http://me:secret@scope/x", "http:// x"]
        {
            let error = url.parse::<Target>().expect_err(url);
            assert!(error.contains("http://scope:8080/throttle") && !error.contains("secret"), "{error}");
        }
        assert_eq!("http://[::1]/x".parse::<Target>().map(|t| (t.host, t.port)), Ok(("::1".into(), 80)));
    }
}
