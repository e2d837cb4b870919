//! An executor's polls of its scheduler: how none of them is lost, and how the last one is known.
//!
//! An executor polls its scheduler for work, and each poll carries the status of its tasks. Ballista sends each poll only once.
//! When a poll is lost, the scheduler waits for results that were in it, or counts tasks as running that never arrived here.
//!
//! The link therefore reports the executor as stopped after a failed poll, before it polls again. The scheduler then gives the
//! executor's tasks to others. A task that still runs here wastes work and does no harm: a driver accepts each chunk once.
//!
//! An executor that is ending keeps polling until all its tasks are reported, but asks for no work.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{ExecutorStoppedParams, PollWorkParams};
use ballista_executor::health::ExecutorHealth;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Service, StdError};
use tonic::transport::Channel;
use tracing::{info, warn};

use super::causes::{causes, said};
use super::serve::MOST_BYTES;

/// How long a scheduler may take to answer.
const ANSWER: Duration = Duration::from_secs(20);

/// The pause after a poll that failed.
const PAUSE: Duration = Duration::from_secs(1);

/// How long the scheduler takes to give up the tasks of an executor that says it has lost them.
const SETTLES: Duration = Duration::from_millis(500);

/// Bytes before a message of gRPC: one that says whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The connection of an executor's poll loop to its scheduler.
#[derive(Clone)]
pub(super) struct Link(Arc<State>);

struct State {
    channel: Channel,
    address: String,
    executor_id: String,
    /// The poll loop notes here whether its latest poll succeeded.
    health: ExecutorHealth,
    /// Whether there was a poll before.
    began: AtomicBool,
    ending: AtomicBool,
    /// One permit, which a poll holds.
    turn: Semaphore,
    /// Polls of which the poll loop has read the answer.
    answered: watch::Sender<u64>,
    silent_since: Mutex<Option<Instant>>,
}

impl Link {
    pub(super) fn new(channel: Channel, address: String, executor_id: String, health: ExecutorHealth) -> Self {
        let [began, ending] = [(); 2].map(|()| AtomicBool::new(false));
        let (answered, silent_since) = (watch::Sender::default(), Mutex::default());
        let turn = Semaphore::new(1);
        Self(Arc::new(State { channel, address, executor_id, health, began, ending, turn, answered, silent_since }))
    }

    /// Asks for no more work.
    pub(super) fn end(&self) {
        self.0.ending.store(true, Relaxed);
    }

    /// Whether the executor asks for no more work.
    pub(super) fn is_ending(&self) -> bool {
        self.0.ending.load(Relaxed)
    }

    /// Waits until `count` polls have been sent and answered, counted from now.
    pub(super) async fn polls(&self, count: u64) {
        let mut answered = self.0.answered.subscribe();
        // The answer to one that was begun before is still to be counted, and another one may have been put together before.
        let enough = *answered.borrow() + count + 2;
        // Fails only without a sender, and `self` is one.
        let _ = answered.wait_for(|&now| now >= enough).await;
    }

    /// Ends the polls, which would make this executor a member again, and leaves the cluster. What was not reported is lost.
    pub(super) async fn close(&self, reason: &str) -> Result<(), String> {
        if let Ok(turn) = self.0.turn.acquire().await {
            turn.forget();
        }
        self.leave(reason).await
    }

    /// Tells the scheduler that this executor's tasks are not its any more.
    async fn leave(&self, reason: &str) -> Result<(), String> {
        let mut scheduler = SchedulerGrpcClient::new(self.0.channel.clone());
        let params = ExecutorStoppedParams { executor_id: self.0.executor_id.clone(), reason: reason.to_owned() };
        let stopped = timeout(ANSWER, scheduler.executor_stopped(params)).await.map_err(|_| late())?;
        stopped.map(drop).map_err(|status| said(&status))
    }

    async fn poll(self, request: Request<Body>) -> Result<Response<Body>, StdError> {
        let state = &self.0;
        let _turn = state.turn.acquire().await?;
        if state.began.swap(true, Relaxed) {
            if state.health.is_ready() {
                state.answered.send_modify(|count| *count += 1);
            } else {
                if let Err(why) = self.leave("a poll was lost").await {
                    return Err(self.pause(why).await);
                }
                sleep(SETTLES).await;
            }
        }
        let request = if self.is_ending() { without_asking(request).await? } else { request };
        match timeout(ANSWER, self.send(request)).await {
            Ok(Ok(response)) => match Status::from_header_map(response.headers()) {
                Some(status) if status.code() != tonic::Code::Ok => {
                    self.failed(&said(&status));
                    sleep(PAUSE).await;
                    Ok(response)
                }
                _ => {
                    self.succeeded();
                    Ok(response)
                }
            },
            Ok(Err(why)) => Err(self.pause(why).await),
            Err(_) => Err(self.pause(late()).await),
        }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Body>, String> {
        let mut channel = self.0.channel.clone();
        std::future::poll_fn(|context| Service::poll_ready(&mut channel, context)).await.map_err(|e| causes(&e))?;
        Service::call(&mut channel, request).await.map_err(|e| causes(&e))
    }

    async fn pause(&self, why: String) -> StdError {
        self.failed(&why);
        sleep(PAUSE).await;
        why.into()
    }

    /// Notes a failed poll; the first one after a success is logged.
    fn failed(&self, why: &str) {
        let mut since = self.0.silent_since.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() {
            *since = Some(Instant::now());
            warn!("the scheduler at {} does not answer: {why}; trying again", self.0.address);
        }
    }

    fn succeeded(&self) {
        let since = self.0.silent_since.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(since) = since {
            info!("the scheduler at {} answers again after {} s", self.0.address, since.elapsed().as_secs());
        }
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Body>;
    type Error = StdError;
    type Future = BoxFuture<'static, Result<Response<Body>, StdError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        // Each call waits for its own turn.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().poll(request))
    }
}

fn late() -> String {
    format!("no answer within {} s", ANSWER.as_secs())
}

/// The same poll of an executor that has no slot free.
async fn without_asking(request: Request<Body>) -> Result<Request<Body>, StdError> {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(axum::body::Body::new(body), MOST_BYTES).await?;
    let bytes = with_no_free_slot(bytes)?;
    Ok(Request::from_parts(parts, Body::new(axum::body::Body::from(bytes))))
}

fn with_no_free_slot(bytes: Bytes) -> Result<Bytes, StdError> {
    let message = bytes.get(PREFIX..).ok_or("a poll without a message")?;
    let params = PollWorkParams { num_free_vcores: 0, ..PollWorkParams::decode(message)? };
    let mut framed = BytesMut::with_capacity(bytes.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(params.encoded_len())?);
    params.encode(&mut framed)?;
    Ok(framed.freeze())
}

#[cfg(test)]
mod tests {
    use ballista_core::serde::protobuf::{ExecutorRegistration, TaskStatus};

    use super::*;

    #[test]
    fn a_poll_of_an_executor_that_ends_reports_its_tasks_and_asks_for_none() {
        let metadata = Some(ExecutorRegistration { id: "one".into(), ..Default::default() });
        let task_status = vec![TaskStatus { job_id: "job".into(), ..Default::default() }];
        let poll = PollWorkParams { metadata, num_free_vcores: 2, task_status };
        let framed = |poll: &PollWorkParams| {
            let message = poll.encode_to_vec();
            let mut bytes = vec![0];
            bytes.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
            bytes.extend(message);
            Bytes::from(bytes)
        };
        let ending = with_no_free_slot(framed(&poll)).unwrap();
        assert_eq!(ending, framed(&PollWorkParams { num_free_vcores: 0, ..poll }));
        assert!(with_no_free_slot(Bytes::from_static(&[0, 0])).is_err());
    }
}
