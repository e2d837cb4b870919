//! An executor: it polls a scheduler for tasks, carries them out with what this process has, and keeps their results until
//! they are fetched.
//!
//! ```text
//! scheduler ◄── polls, reports ── Executor ── task ──► operators, with this process's Station
//!                                    │ results
//! driver ◄──────── Flight ───── results folder
//! ```
//! It ends in an order that loses no result: it asks for no more tasks, finishes those that run, reports them, says goodbye,
//! and keeps the results for half a minute.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arrow_flight::flight_service_server::FlightServiceServer;
use ballista_core::BALLISTA_PROTOCOL_VERSION;
use ballista_core::extension::SessionConfigExt as _;
use ballista_core::ids::new_instance_id;
use ballista_core::registry::BallistaFunctionRegistry;
use ballista_core::serde::protobuf::executor_resource::Resource;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{ExecutorRegistration, ExecutorResource, ExecutorSpecification};
use ballista_core::serde::{BallistaCodec, BallistaLogicalExtensionCodec};
use ballista_executor::execution_loop::poll_loop;
use ballista_executor::executor::Executor as TaskExecutor;
use ballista_executor::flight_service::BallistaFlightService;
use ballista_executor::health::ExecutorHealth;
use ballista_executor::metrics::ExecutorMetricsCollector;
use datafusion::execution::runtime_env::{RuntimeEnv, RuntimeEnvBuilder};
use datafusion::prelude::SessionConfig;
use datafusion_proto::physical_plan::PhysicalExtensionCodec;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tonic::service::Routes;
use tonic::transport::Channel;
use tracing::warn;

use super::board::{self, MOST_SLOTS, StationReport};
use super::connect::{connect, endpoint};
use super::link::Link;
use super::registry::StoreRegistry;
use super::serve::{self, MOST_BYTES};
use super::tasks::{Engine, Tasks};
use super::tls::Tls;
use crate::error::{Error, Result};
use crate::flow::Station;
use crate::machine::return_free_memory;
use crate::query;

/// How long an executor tries to reach itself.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

/// How long the end waits for a scheduler that does not answer.
const REPORTS_WITHIN: Duration = Duration::from_secs(30);

/// How often an executor reports to the board, and how long one report may take.
const REPORTS_EVERY: Duration = Duration::from_secs(2);
const REPORT: Duration = Duration::from_secs(5);

/// How often it is looked whether the last tasks have ended.
const LOOKS_EVERY: Duration = Duration::from_millis(100);

/// The time over which the rate is measured.
const WINDOW: Duration = Duration::from_secs(60);

/// What an executor is started with.
#[derive(Debug)]
pub struct ExecutorSetup {
    /// The address of the scheduler.
    pub scheduler: String,
    /// The host at which drivers and other executors reach this one; none for the listener's address.
    pub advertise: Option<String>,
    /// Tasks at the same time.
    pub slots: usize,
    /// The folder of results, which must exist.
    pub results: PathBuf,
    /// The folder of what queries cannot hold in memory, which must exist.
    pub spill: PathBuf,
    /// The certificates, where TLS is used.
    pub tls: Option<Tls>,
    /// Reads and writes the operators of plans.
    pub codec: Arc<dyn PhysicalExtensionCodec>,
}

/// An executor that has found its scheduler.
pub struct Executor {
    id: String,
    address: SocketAddr,
    listener: TcpListener,
    setup: ExecutorSetup,
    station: Arc<Station>,
    channel: Channel,
    scheduler: String,
    host: String,
}

impl std::fmt::Debug for Executor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executor").field("id", &self.id).field("address", &self.address).finish_non_exhaustive()
    }
}

impl Executor {
    /// Connects to the scheduler, which may be starting.
    ///
    /// # Errors
    /// [`Error::Cluster`] where no scheduler answers within 10 s; [`Error::Config`] for settings that cannot be used.
    pub async fn connect(listener: TcpListener, setup: ExecutorSetup, station: Arc<Station>) -> Result<Self> {
        if !(1..=MOST_SLOTS).contains(&setup.slots) {
            return Err(Error::Config(format!("--slots {}: give 1 to {MOST_SLOTS}", setup.slots)));
        }
        let address = listener.local_addr().map_err(|e| Error::io("cannot read the address of the listener", e))?;
        let host = host(setup.advertise.as_deref(), address.ip())?;
        let (channel, scheduler) = connect("--scheduler", &setup.scheduler, setup.tls.as_ref()).await?;
        Ok(Self { id: new_instance_id(), address, listener, setup, station, channel, scheduler, host })
    }

    /// Its id in the cluster.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Works until `shutdown` completes or the station is unfit, then finishes its tasks and keeps their results for a while.
    /// It waits through an outage of the scheduler.
    ///
    /// # Errors
    /// [`Error::Cluster`] with the reason where the station is unfit or a server fails.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<()> {
        let slots = self.setup.slots;
        if self.setup.advertise.is_some() {
            tokio::spawn(warn_of_unreachable(self.host.clone(), self.address.port()));
        }
        let (free, tasks, health) =
            (Arc::new(Semaphore::new(slots)), Arc::new(Tasks::default()), ExecutorHealth::new());
        let link = Link::new(self.channel.clone(), self.scheduler.clone(), self.id.clone(), health.clone());
        let scheduler = SchedulerGrpcClient::new(link.clone())
            .max_encoding_message_size(MOST_BYTES)
            .max_decoding_message_size(MOST_BYTES);
        let executor = Arc::new(self.task_executor(&tasks)?);
        let logical = Arc::new(BallistaLogicalExtensionCodec::default());
        let codec = BallistaCodec::<LogicalPlanNode, PhysicalPlanNode>::new(logical, Arc::clone(&self.setup.codec));
        let mut polling =
            Aborting(tokio::spawn(poll_loop(scheduler, executor, codec, None, Some(Arc::clone(&free)), health)));
        let reporter = Reporter::new(&self, &link);
        let _reporting = Aborting(tokio::spawn(reporter.clone().report_on()));

        let flight = FlightServiceServer::new(BallistaFlightService::new(text(&self.setup.results)?))
            .max_encoding_message_size(MOST_BYTES)
            .max_decoding_message_size(MOST_BYTES);
        let (close, closed) = oneshot::channel::<()>();
        let tls = self.setup.tls.as_ref();
        let serving = serve::serve(self.listener, Routes::new(flight), tls, async { drop(closed.await) });
        let mut serving = pin!(serving);
        let ending = async {
            let unfit = tokio::select! {
                biased;
                reason = self.station.unfit() => Some(reason),
                () = shutdown => None,
            };
            let asked = Instant::now();
            reporter.end(unfit.clone());
            drain(&link, &free, slots).await;
            reporter.report(0.).await;
            if let Err(why) = link.close(unfit.as_deref().unwrap_or("asked to end")).await {
                warn!("the scheduler could not be informed that this executor is ending: {why}");
            }
            tasks.keep_results(asked).await;
            unfit
        };
        let unfit = tokio::select! {
            served = &mut serving => return served.and(Err(Error::Bug("the server of results ended by itself".into()))),
            ended = &mut polling.0 => return Err(Error::Cluster(format!("the polls of the scheduler ended: {ended:?}"))),
            unfit = ending => unfit,
        };
        drop(close);
        let served = serving.await;
        unfit.map_or(served, |reason| Err(Error::Cluster(reason)))
    }

    /// Carries out tasks: each with this process's station, its memory and its certificates.
    fn task_executor(&self, tasks: &Arc<Tasks>) -> Result<TaskExecutor> {
        let vcores = u32::try_from(self.setup.slots).unwrap_or(u32::MAX);
        let resources = vec![ExecutorResource { resource: Some(Resource::Vcores(vcores)) }];
        let registration = ExecutorRegistration {
            id: self.id.clone(),
            // Always: the scheduler cannot find it out by itself.
            host: Some(self.host.clone()),
            port: u32::from(self.address.port()),
            // Nobody calls an executor for anything but results.
            grpc_port: 0,
            specification: Some(ExecutorSpecification { resources }),
            os_info: Some(Default::default()),
            ballista_protocol_version: BALLISTA_PROTOCOL_VERSION,
        };
        let runtime = runtime(&self.station, &self.setup.spill)?;
        let (station, tls) = (Arc::clone(&self.station), self.setup.tls.clone());
        let session = move || {
            let tls = tls.clone();
            SessionConfig::new_with_ballista()
                .with_extension(Arc::clone(&station))
                .with_ballista_use_tls(tls.is_some())
                .with_ballista_override_create_grpc_client_endpoint(Arc::new(move |to| Ok(endpoint(to, tls.as_ref())?)))
        };
        Ok(TaskExecutor::new(
            registration,
            &text(&self.setup.results)?,
            Arc::new(move |_| Ok(Arc::clone(&runtime))),
            Arc::new(session),
            Arc::new(functions()),
            Arc::clone(tasks) as Arc<dyn ExecutorMetricsCollector>,
            self.setup.slots,
            Arc::new(Engine::new(Arc::clone(&self.station))),
        ))
    }
}

/// The functions of the engine, and ours.
fn functions() -> BallistaFunctionRegistry {
    let mut registry = BallistaFunctionRegistry::default();
    registry.scalar_functions.extend(query::functions().map(|function| (function.name().to_owned(), function)));
    registry
}

/// One runtime for all tasks: their memory is the station's.
fn runtime(station: &Station, spill: &Path) -> Result<Arc<RuntimeEnv>> {
    let builder = RuntimeEnvBuilder::new().with_memory_pool(station.pool()).with_temp_file_path(spill);
    // A plan names stores; the credentials are this process's own.
    let builder = builder.with_object_store_registry(Arc::new(StoreRegistry::default()));
    builder.build_arc().map_err(Error::Query)
}

fn text(folder: &Path) -> Result<String> {
    let text = folder.to_str().ok_or_else(|| {
        Error::Config(format!("--work-dir {}: the name is not UTF-8; give another folder", folder.display()))
    });
    text.map(str::to_owned)
}

/// The host under which others reach a listener.
fn host(advertised: Option<&str>, listener: IpAddr) -> Result<String> {
    let refused = |what: &str| Error::Config(format!("--advertise {what}, such as node-7 or 10.0.0.7"));
    match advertised {
        // A host is not checked further: only others can know whether it leads here.
        Some(host) => match url::Host::parse(host) {
            Ok(host) => Ok(host.to_string()),
            Err(_) => Err(refused("takes the host name or IP address of this machine without a port")),
        },
        None if listener.is_unspecified() => Err(refused(
            "is needed where --listen names no address of its own: give the host at which drivers and other executors reach \
             this one",
        )),
        None => Ok(match listener {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        }),
    }
}

/// Warns where this machine does not reach its own listener by the name that it advertises. Others may: a network need not lead
/// back.
async fn warn_of_unreachable(host: String, port: u16) {
    let why = match timeout(REACHED_WITHIN, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", REACHED_WITHIN.as_secs()),
    };
    warn!(
        "--advertise {host}: this machine does not reach itself by it ({why}); drivers that do not either get no results"
    );
}

/// Waits until no task runs and the scheduler knows of them all.
async fn drain(link: &Link, free: &Semaphore, slots: usize) {
    // A poll that was under way may have brought a last task, which takes its slot before the next poll.
    let settled = timeout(REPORTS_WITHIN, link.polls(1)).await;
    while free.available_permits() < slots {
        sleep(LOOKS_EVERY).await;
    }
    // A task frees its slot once its result is ready to be reported.
    let reported = timeout(REPORTS_WITHIN, link.polls(1)).await;
    if settled.is_err() || reported.is_err() {
        warn!("the scheduler does not answer; other executors screen again what was not reported to it");
    }
}

/// A task in the background that ends when it is dropped.
struct Aborting<T>(JoinHandle<T>);

impl<T> Drop for Aborting<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the board every 2 s how this executor does.
#[derive(Clone)]
struct Reporter {
    channel: Channel,
    link: Link,
    id: String,
    slots: usize,
    station: Arc<Station>,
    unfit: Arc<OnceLock<String>>,
}

impl Reporter {
    fn new(executor: &Executor, link: &Link) -> Self {
        Self {
            channel: executor.channel.clone(),
            link: link.clone(),
            id: executor.id.clone(),
            slots: executor.setup.slots,
            station: Arc::clone(&executor.station),
            unfit: Arc::default(),
        }
    }

    /// Takes no more tasks, which reports say from now on, with the reason where there is one.
    fn end(&self, unfit: Option<String>) {
        if let Some(reason) = unfit {
            // An executor ends once.
            let _ = self.unfit.set(reason);
        }
        self.link.end();
    }

    async fn report_on(self) {
        let (mut rate, mut was_screening) = (Rate::default(), false);
        let mut ticks = interval(REPORTS_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let counts = self.station.progress.snapshot();
            let screening = counts.in_flight() > 0;
            if was_screening && !screening {
                return_free_memory();
            }
            was_screening = screening;
            self.report(rate.at(Instant::now(), counts.ended())).await;
        }
    }

    async fn report(&self, scans_per_minute: f64) {
        let counts = self.station.progress.snapshot();
        let report = StationReport {
            executor_id: self.id.clone(),
            device: self.station.device.clone(),
            slots: if self.link.is_ending() { 0 } else { self.slots },
            version: env!("CARGO_PKG_VERSION").to_owned(),
            done: counts.done,
            failed: counts.failed,
            in_flight: counts.in_flight(),
            scans_per_minute,
            unfit: self.unfit.get().cloned(),
        };
        // Polls notice a scheduler that does not answer, and the next report replaces this one.
        let _ = timeout(REPORT, board::send(&self.channel, &report)).await;
    }
}

/// A rate over the last minute.
#[derive(Debug, Default)]
struct Rate(VecDeque<(Instant, u64)>);

impl Rate {
    /// Scans per minute over the last minute. `ended` is the number of scans that have ended by `now`.
    fn at(&mut self, now: Instant, ended: u64) -> f64 {
        self.0.push_back((now, ended));
        while self.0.get(1).is_some_and(|&(at, _)| now.duration_since(at) >= WINDOW) {
            self.0.pop_front();
        }
        let Some(&(since, before)) = self.0.front() else { return 0. };
        let seconds = now.duration_since(since).as_secs_f64();
        if seconds > 0. { (ended - before) as f64 * 60. / seconds } else { 0. }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_find_an_executor_by_its_address_or_by_what_it_advertises() {
        let found = |advertised, listener: &str| host(advertised, listener.parse().unwrap());
        assert_eq!(found(None, "127.0.0.1").unwrap(), "127.0.0.1");
        assert_eq!(found(None, "::1").unwrap(), "[::1]");
        assert_eq!(found(Some("node-7"), "0.0.0.0").unwrap(), "node-7");
        assert_eq!(found(Some("[fd00::7]"), "::").unwrap(), "[fd00::7]");
        for (advertised, listener, word) in
            [(None, "0.0.0.0", "is needed"), (None, "::", "is needed"), (Some("node-7:80"), "::", "without a port")]
        {
            let error = found(advertised, listener).unwrap_err();
            assert!(matches!(error, Error::Config(_)) && error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_rate_forgets_what_is_older_than_a_minute() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        let mut at = |seconds, ended| rate.at(start + Duration::from_secs(seconds), ended);
        assert_eq!(at(0, 0), 0.);
        assert_eq!(at(30, 10), 20.);
        assert_eq!(at(60, 10), 10.);
        assert_eq!(at(90, 10), 0.);
    }
}
