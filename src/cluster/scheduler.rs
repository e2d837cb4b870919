//! A scheduler: the queue of a cluster's jobs, and the board on which its executors report themselves.
//!
//! ```text
//!                       ┌────────────── one port ──────────────┐
//! driver ── gRPC ──────►│ SchedulerServer   jobs, members      │
//! executor ── polls ───►│ Board             GET/POST /stations │
//! driver ── HTTP ──────►│                   DELETE /jobs/<id>  │
//! monitor ── HTTP ─────►│                   GET /healthz       │
//!                       └──────────────────────────────────────┘
//! ```
//! All state is in memory. A restarted scheduler has forgotten its jobs, and drivers submit them again. It connects to nobody:
//! executors ask it for work, which is also how it knows that they live.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path as UrlPath, State};
use axum::http::StatusCode;
use axum::routing::{delete, get};
use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::extension::SessionConfigExt as _;
use ballista_core::serde::protobuf::scheduler_grpc_server::SchedulerGrpcServer;
use ballista_core::utils::default_session_builder;
use ballista_scheduler::cluster::{BallistaCluster, JobState};
use ballista_scheduler::config::SchedulerConfig;
use ballista_scheduler::scheduler_process::create_scheduler;
use ballista_scheduler::scheduler_server::SchedulerServer;
use datafusion::prelude::SessionConfig;
use datafusion_proto::physical_plan::PhysicalExtensionCodec;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::board::{self, Board};
use super::serve::{self, MOST_BYTES};
use super::tls::Tls;
use crate::error::{Error, Result};

/// The shortest time of silence after which an executor may count as dead: one that is busy polls every 5 s.
pub const LEAST_DEAD_AFTER: Duration = Duration::from_secs(6);

/// The longest.
pub const MOST_DEAD_AFTER: Duration = Duration::from_secs(86_400);

/// How often dead executors are looked for.
const LOOKS_EVERY: Duration = Duration::from_secs(2);

/// How long a finished job and its results are kept where no driver asks to forget it. A driver fetches them at once; one that
/// comes later submits the job again.
const KEPT: Duration = Duration::from_secs(300);

/// Where the scheduler is asked to forget a job, followed by its id.
pub(super) const JOBS: &str = "/jobs";

/// How long jobs wait for an executor once the last one is lost: for ever, because their driver decides. Ten years, a number
/// that every clock can add.
const WAIT: Duration = Duration::from_secs(10 * 365 * 86_400);

/// What a scheduler is started with.
#[derive(Debug)]
pub struct SchedulerSetup {
    /// The silence after which an executor counts as dead and its tasks go to others.
    pub dead_after: Duration,
    /// The certificates, where TLS is used.
    pub tls: Option<Tls>,
    /// Reads and writes the operators of plans.
    pub codec: Arc<dyn PhysicalExtensionCodec>,
}

/// Serves a cluster until `shutdown` completes. Calls `listening` once it is about to accept connections.
///
/// # Errors
/// [`Error::Config`] where `dead_after` is shorter than [`LEAST_DEAD_AFTER`]; [`Error::Cluster`] where the server fails.
pub async fn serve(
    listener: TcpListener,
    setup: SchedulerSetup,
    listening: impl FnOnce(),
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    if setup.dead_after < LEAST_DEAD_AFTER {
        return Err(Error::Config(format!(
            "--dead-after {}: a busy executor reports every 5 s and would count as dead; give {} or more",
            setup.dead_after.as_secs(),
            LEAST_DEAD_AFTER.as_secs()
        )));
    }
    if setup.dead_after > MOST_DEAD_AFTER {
        return Err(Error::Config(format!(
            "--dead-after {}: the chunks of a dead executor would wait for as long; give {} at most",
            setup.dead_after.as_secs(),
            MOST_DEAD_AFTER.as_secs()
        )));
    }
    let board = Board::new(setup.dead_after);
    let tls = setup.tls.clone();
    let (scheduler, finished) = start(setup, &listener).await?;
    let service = SchedulerGrpcServer::new(scheduler.clone())
        .max_encoding_message_size(MOST_BYTES)
        .max_decoding_message_size(MOST_BYTES);
    let router = Routes::new(service)
        .into_axum_router()
        .merge(board::routes(board))
        .merge(jobs(finished))
        .merge(probes(scheduler));
    listening();
    serve::serve(listener, Routes::from(router), tls.as_ref(), shutdown).await
}

type Scheduler = SchedulerServer<LogicalPlanNode, PhysicalPlanNode>;

/// The queue and its tasks in the background, which end with the process.
async fn start(setup: SchedulerSetup, listener: &TcpListener) -> Result<(Scheduler, Arc<dyn JobState>)> {
    let failed = |what: String| Error::Cluster(format!("the scheduler cannot start: {what}"));
    let at = listener.local_addr().map_err(|e| Error::io("cannot read the address of the listener", e))?;
    let tls = setup.tls.is_some();
    let session = move || {
        // Ballista partitions data itself, and warns in every session that is asked to.
        SessionConfig::new_with_ballista().with_round_robin_repartition(false).with_ballista_use_tls(tls)
    };
    let mut config = SchedulerConfig::default()
        .with_hostname(at.ip().to_string())
        .with_port(at.port())
        .with_scheduler_policy(TaskSchedulingPolicy::PullStaged)
        .with_finished_job_data_clean_up_interval_seconds(KEPT.as_secs())
        .with_finished_job_state_clean_up_interval_seconds(KEPT.as_secs())
        .with_no_executors_grace_period_seconds(WAIT.as_secs())
        .with_grpc_server_max_encoding_message_size(MOST_BYTES as u32)
        .with_grpc_server_max_decoding_message_size(MOST_BYTES as u32)
        .with_override_config_producer(Arc::new(session))
        // To call an executor that is dead would hold up the search for others.
        .with_override_create_grpc_client_endpoint(Arc::new(|_| Err("executors are not called".into())));
    config.executor_timeout_seconds = setup.dead_after.as_secs();
    config.expire_dead_executor_interval_seconds = LOOKS_EVERY.as_secs();
    config.override_physical_codec = Some(setup.codec);
    config.validate().map_err(|e| failed(e.to_string()))?;
    let sessions = (Arc::new(default_session_builder), Arc::new(session));
    let cluster = BallistaCluster::new_memory(config.scheduler_id.clone(), sessions.0, sessions.1);
    let jobs = cluster.job_state();
    let scheduler = create_scheduler(cluster, Arc::new(config)).await.map_err(|e| failed(e.to_string()))?;
    Ok((scheduler, jobs))
}

/// `DELETE /jobs/<id>` forgets a finished job. Otherwise a run of very many small chunks would fill the memory with the plans of
/// the last minutes.
fn jobs(jobs: Arc<dyn JobState>) -> axum::Router {
    let forget = |State(jobs): State<Arc<dyn JobState>>, UrlPath(job): UrlPath<String>| async move {
        // Only finished jobs are removed; one that is queued or running stays.
        match jobs.remove_job(&job.into()).await {
            Ok(()) => StatusCode::NO_CONTENT,
            Err(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    };
    axum::Router::new().route(&format!("{JOBS}/{{job}}"), delete(forget)).with_state(jobs)
}

/// For monitors: `/healthz` answers while the process runs, `/readyz` once it has an executor.
fn probes(scheduler: Scheduler) -> axum::Router {
    let ready = move || {
        let is_ready = scheduler.is_ready();
        async move { if is_ready { (StatusCode::OK, "ready") } else { (StatusCode::SERVICE_UNAVAILABLE, "no executors") } }
    };
    axum::Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready))
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tonic::codegen::Service as _;

    use super::*;

    #[tokio::test]
    async fn a_finished_job_is_forgotten_on_request_and_a_queued_one_stays() {
        let sessions = (Arc::new(default_session_builder), Arc::new(SessionConfig::new_with_ballista));
        let state = BallistaCluster::new_memory("test", sessions.0, sessions.1).job_state();
        let [finished, queued] = ["finished", "queued"].map(|id| id.to_owned().into());
        for job in [&finished, &queued] {
            state.accept_job(job, "chunk", 0).unwrap();
        }
        state.fail_unscheduled_job(&finished, "no plan".into()).await.unwrap();
        let mut routes = jobs(Arc::clone(&state));
        for job in [&finished, &queued] {
            assert!(state.get_job_status(job).await.unwrap().is_some(), "{job}");
            let request = Request::delete(format!("{JOBS}/{job}")).body(Body::empty()).unwrap();
            assert_eq!(routes.call(request).await.unwrap().status(), StatusCode::NO_CONTENT, "{job}");
        }
        assert!(state.get_job_status(&finished).await.unwrap().is_none());
        assert!(state.get_job_status(&queued).await.unwrap().is_some());
    }
}
