//! What the servers of a cluster have in common: who may reach them, and how a refused peer is noticed.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tracing::warn;

use super::causes::causes;
use super::tls::Tls;
use crate::error::{Error, Result};

/// The largest message, bytes: plans of chunks and lists of partitions.
pub(super) const MOST_BYTES: usize = 256 << 20;

/// How long a server that ends waits for requests in flight.
const LINGER: Duration = Duration::from_secs(5);

/// The pause after a connection could not be accepted, as where this process has too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// How soon the refusal of the same peer is logged again.
const REPEATED_AFTER: Duration = Duration::from_secs(10);

/// How often an idle connection is tested, and how long the answer may take.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(20));

/// Who may reach a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Programs of this machine, and with TLS all that have a certificate of the cluster.
    Protected,
    /// Without TLS, whoever reaches the port.
    Open,
}

/// Listens, where that does not open the cluster to strangers. Port 0 takes any free one.
///
/// # Errors
/// [`Error::Config`] for an address that others reach, without TLS and without [`Access::Open`]; [`Error::Io`] where the
/// address cannot be used.
pub async fn listen(at: SocketAddr, tls: Option<&Tls>, access: Access) -> Result<TcpListener> {
    check(at, tls.is_some(), access)?;
    TcpListener::bind(at).await.map_err(|e| Error::io(format!("cannot listen on {at}"), e))
}

fn check(at: SocketAddr, tls: bool, access: Access) -> Result<()> {
    if tls || access == Access::Open || at.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err(Error::Config(format!(
        "--listen {at} can be reached from other machines, and whoever reaches a cluster can have its executors read and write \
         everything that their credentials open; give --tls FOLDER with certificates, or --open-network where the network \
         itself keeps strangers out"
    )))
}

/// Serves until `shutdown` completes; requests in flight then have 5 s to end.
///
/// # Errors
/// [`Error::Cluster`] where the server fails.
pub(super) async fn serve(
    listener: TcpListener,
    routes: Routes,
    tls: Option<&Tls>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let failed = |e: tonic::transport::Error| Error::Cluster(format!("the server failed: {}", causes(&e)));
    let (interval, answer) = KEEP_ALIVE;
    let mut server = Server::builder()
        // For monitors that ask for /healthz and /stations.
        .accept_http1(true)
        .http2_keepalive_interval(Some(interval))
        .http2_keepalive_timeout(Some(answer));
    if let Some(tls) = tls {
        server = server.tls_config(tls.server()).map_err(failed)?;
    }
    let (ending, ended) = oneshot::channel();
    let shutdown = async {
        shutdown.await;
        // Nobody listens any more where the server has failed.
        let _ = ending.send(());
    };
    let serving = server.add_routes(routes).serve_with_incoming_shutdown(peers(listener, tls.is_some()), shutdown);
    let lingering = async {
        match ended.await {
            Ok(()) => sleep(LINGER).await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        served = serving => served.map_err(failed),
        () = lingering => Ok(()),
    }
}

/// The latest refusal, which is not repeated at once: a peer that is refused tries again.
type Refusals = Arc<Mutex<Option<(IpAddr, Instant)>>>;

/// The connections that are made to a listener.
fn peers(listener: TcpListener, tls: bool) -> impl Stream<Item = io::Result<Peer>> {
    let refusals = tls.then(Refusals::default);
    futures::stream::unfold((listener, refusals), |(listener, refusals)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, address)) => {
                    // Without it, small answers may wait for one another; they arrive all the same.
                    let _ = stream.set_nodelay(true);
                    let (refusals_of_peer, admitted) = (refusals.clone(), AtomicBool::new(false));
                    let peer = Peer { stream, address, refusals: refusals_of_peer, spoke: false, admitted };
                    return Some((Ok(peer), (listener, refusals)));
                }
                Err(error) => {
                    warn!("a connection could not be accepted: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
    })
}

/// A connection that says so when it ends before its handshake. The server itself says nothing then.
struct Peer {
    stream: TcpStream,
    address: SocketAddr,
    /// Where there is a handshake.
    refusals: Option<Refusals>,
    /// Whether the other end has sent anything: probes of a port do not.
    spoke: bool,
    /// Whether the server has taken the connection, which it does after the handshake.
    admitted: AtomicBool,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let Some(refusals) = self.refusals.as_ref().filter(|_| self.spoke && !self.admitted.load(Relaxed)) else {
            return;
        };
        let (from, now) = (self.address.ip(), Instant::now());
        let mut latest = refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.is_none_or(|(peer, at)| peer != from || now.duration_since(at) >= REPEATED_AFTER) {
            *latest = Some((from, now));
            warn!(
                "refused a connection from {from} at its handshake: it does not use TLS, shows no valid certificate of the \
                 authority in ca.pem, or refuses this process's certificate"
            );
        }
    }
}

impl Connected for Peer {
    type ConnectInfo = SocketAddr;

    fn connect_info(&self) -> SocketAddr {
        self.admitted.store(true, Relaxed);
        self.address
    }
}

impl AsyncRead for Peer {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.spoke |= buffer.filled().len() > before;
        read
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_reach_needs_tls_or_an_open_network() {
        let may = |at: &str, tls, access| check(at.parse().unwrap(), tls, access);
        for local in ["127.0.0.1:0", "127.8.8.8:50050", "[::1]:50050", "[::ffff:127.0.0.1]:1"] {
            may(local, false, Access::Protected).unwrap();
        }
        for open in ["0.0.0.0:50050", "10.1.2.3:0", "[::]:50050", "[::ffff:10.1.2.3]:1"] {
            let error = may(open, false, Access::Protected).unwrap_err();
            let said = error.to_string();
            assert!(matches!(error, Error::Config(_)), "{said}");
            assert!(["--tls", "--open-network", "credentials", open].iter().all(|word| said.contains(word)), "{said}");
            may(open, true, Access::Protected).unwrap();
            may(open, false, Access::Open).unwrap();
        }
    }
}
