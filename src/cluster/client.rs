//! A client of a scheduler: it submits physical plans as jobs, polls them, and fetches their results from the executors.
//!
//! Every call has a limited time, and none waits for a job. Ballista's own client is not used for that: it hides a job's id,
//! and it waits for ever for a job that a restarted scheduler has forgotten.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
pub use ballista_core::JobId;
use ballista_core::client::BallistaClient;
use ballista_core::config::BALLISTA_JOB_NAME;
use ballista_core::extension::BallistaConfigGrpcEndpoint;
pub use ballista_core::serde::protobuf::PartitionLocation;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    CancelJobParams, ExecuteQueryParams, ExecutorMetadata, GetJobMetricsParams, GetJobStatusParams, KeyValuePair,
    OperatorMetric, execute_query_failure_result, execute_query_params, execute_query_result, job_status,
    operator_metric,
};
use ballista_core::version::insert_version_header;
use datafusion::physical_plan::{ExecutionPlan, SendableRecordBatchStream};
use datafusion_proto::physical_plan::{AsExecutionPlan as _, PhysicalExtensionCodec};
use datafusion_proto::protobuf::PhysicalPlanNode;
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use tokio::time::{timeout, timeout_at};
use tonic::codegen::http;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use super::board::{self, StationReport};
use super::causes::{causes, said};
use super::connect::{CONNECT, address, endpoint, unreachable};
use super::scheduler::JOBS;
use super::tls::Tls;
use crate::error::{Error, Result};

/// How long the scheduler may take to answer. It decodes a plan before it answers a submission.
const ANSWER: Duration = Duration::from_secs(20);

/// How long an executor may take for the next batch of a result.
const BATCH: Duration = Duration::from_secs(60);

/// How long a job may be unknown before it counts as forgotten. The scheduler answers a submission before it has registered
/// the job, and moves a job that ends from one of its lists to another.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// The largest message, bytes: plans of chunks and lists of partitions.
const MOST_BYTES: usize = 256 << 20;

/// The sums of a job's metrics over its operators, partitions and stages, by name. Times are in nanoseconds.
pub type Metrics = BTreeMap<String, u64>;

/// Where a job is.
#[derive(Debug, Clone, PartialEq)]
pub enum JobState {
    /// The scheduler does not know the job: it was restarted, and the job must be submitted again.
    Unknown,
    /// It waits for an executor.
    Queued,
    /// Executors work on it.
    Running,
    /// It is done, and its rows lie at these places.
    Done(Vec<PartitionLocation>),
    /// It failed, with the scheduler's message.
    Failed(String),
}

/// A connection to a scheduler. It is made again by itself after it breaks.
#[derive(Clone)]
pub struct Client {
    address: String,
    channel: Channel,
    tls: Option<Tls>,
    codec: Arc<dyn PhysicalExtensionCodec>,
    session: String,
    /// Since when the scheduler does not know a job.
    unknown: Arc<Mutex<HashMap<JobId, Instant>>>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Client {
    /// Connects to the scheduler at `http://host:port` or, with TLS, `https://host:port`; `host:port` means either.
    ///
    /// # Errors
    /// [`Error::Cluster`] where no scheduler answers within 10 s; [`Error::Config`] for an address that cannot be used.
    pub async fn connect(url: &str, tls: Option<&Tls>, codec: Arc<dyn PhysicalExtensionCodec>) -> Result<Self> {
        let address = address("--cluster", url, tls.is_some())?;
        let deadline = tokio::time::Instant::now() + CONNECT;
        let unreachable = |why: String| unreachable(&address, tls.is_some(), &why);
        let late = || unreachable(format!("no answer within {} s", CONNECT.as_secs()));
        let endpoint = endpoint(Endpoint::from_shared(address.clone()).map_err(|e| unreachable(causes(&e)))?, tls)
            .map_err(|e| unreachable(causes(&e)))?;
        let connected = timeout_at(deadline, endpoint.connect()).await.map_err(|_| late())?;
        let client = Self {
            channel: connected.map_err(|e| unreachable(causes(&e)))?,
            address: address.clone(),
            tls: tls.cloned(),
            codec,
            session: uuid::Uuid::now_v7().to_string(),
            unknown: Arc::default(),
        };
        // Another server may listen there, and a server refuses a certificate only after the handshake of the client.
        let question = GetJobStatusParams { job_id: "none".to_owned() };
        let answered = timeout_at(deadline, client.scheduler().get_job_status(question)).await.map_err(|_| late())?;
        answered.map_err(|status| unreachable(said(&status)))?;
        Ok(client)
    }

    /// The address of the scheduler, for messages.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// What the executors have reported of themselves lately.
    ///
    /// # Errors
    /// [`Error::Cluster`] where the scheduler does not answer.
    pub async fn stations(&self) -> Result<Vec<StationReport>> {
        timeout(ANSWER, board::fetch(&self.channel)).await.map_err(|_| self.silent("no answer in time"))?
    }

    /// Submits a plan, and does not wait for it. `name` is shown in the scheduler's log.
    ///
    /// # Errors
    /// [`Error::Cluster`] where the scheduler does not answer or refuses the plan; [`Error::Query`] for a plan that cannot be
    /// sent.
    pub async fn submit(&self, plan: Arc<dyn ExecutionPlan>, name: &str) -> Result<JobId> {
        self.submit_with(plan, name, Vec::new()).await
    }

    /// True where a plan is no deeper than a scheduler decodes: protobuf allows a hundred levels of messages, which is a chain of
    /// fifty operators.
    ///
    /// # Errors
    /// [`Error::Query`] for a plan that cannot be sent at all.
    pub fn is_shallow(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
        is_shallow(plan, self.codec.as_ref())
    }

    /// [`submit`](Client::submit) with settings of the session, which hold on the executors.
    ///
    /// # Errors
    /// As [`submit`](Client::submit).
    pub async fn submit_with(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        name: &str,
        settings: Vec<(String, String)>,
    ) -> Result<JobId> {
        let bytes = encoded(plan, self.codec.as_ref())?;
        let settings = settings.into_iter().chain([(BALLISTA_JOB_NAME.to_owned(), name.to_owned())]);
        let mut request = Request::new(ExecuteQueryParams {
            session_id: self.session.clone(),
            settings: settings.map(|(key, value)| KeyValuePair { key, value: Some(value) }).collect(),
            operation_id: uuid::Uuid::now_v7().to_string(),
            query: Some(execute_query_params::Query::PhysicalPlan(bytes)),
        });
        insert_version_header(request.metadata_mut());
        let mut scheduler = self.scheduler();
        let result = self.answer(scheduler.execute_query(request)).await?.result;
        match result {
            Some(execute_query_result::Result::Success(accepted)) => Ok(accepted.job_id.into()),
            Some(execute_query_result::Result::Failure(refused)) => {
                use execute_query_failure_result::Failure as F;
                let why = match refused.failure {
                    Some(F::SessionNotFound(why) | F::PlanParsingFailure(why) | F::SqlParsingFailure(why)) => why,
                    None => "no reason given".to_owned(),
                };
                Err(Error::Cluster(format!(
                    "the scheduler at {} refuses the plan: {why}; use the same version of this program for scheduler, \
                     executors and client",
                    self.address
                )))
            }
            None => Err(self.silent("an empty answer")),
        }
    }

    /// Asks once where a job is.
    ///
    /// # Errors
    /// [`Error::Cluster`] where the scheduler does not answer. The job may go on; the caller may ask again.
    pub async fn poll(&self, job: &JobId) -> Result<JobState> {
        let mut scheduler = self.scheduler();
        let question = GetJobStatusParams { job_id: job.to_string() };
        let status = self.answer(scheduler.get_job_status(question)).await?.status.and_then(|status| status.status);
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(status) = status else {
            let since = *unknown.entry(job.clone()).or_insert_with(Instant::now);
            if since.elapsed() < FORGOTTEN {
                return Ok(JobState::Queued);
            }
            unknown.remove(job);
            return Ok(JobState::Unknown);
        };
        unknown.remove(job);
        Ok(match status {
            job_status::Status::Queued(_) => JobState::Queued,
            job_status::Status::Running(_) => JobState::Running,
            job_status::Status::Failed(failed) => JobState::Failed(failed.error),
            job_status::Status::Successful(done) => JobState::Done(done.partition_location),
        })
    }

    /// All rows of a finished job.
    ///
    /// # Errors
    /// [`Error::Cluster`] where an executor is gone or does not send them.
    pub async fn fetch(&self, partitions: &[PartitionLocation]) -> Result<Vec<RecordBatch>> {
        self.rows(partitions.to_vec()).try_collect().await
    }

    /// The rows of a finished job, partition by partition, as they arrive.
    ///
    /// # Errors
    /// The stream gives those of [`fetch`](Client::fetch).
    pub fn rows(&self, partitions: Vec<PartitionLocation>) -> impl Stream<Item = Result<RecordBatch>> + Send + use<> {
        let client = self.clone();
        futures::stream::iter(partitions)
            .then(move |partition| {
                let client = client.clone();
                async move { client.partition(partition).await }
            })
            .try_flatten()
    }

    /// What a job's operators measured.
    ///
    /// # Errors
    /// [`Error::Cluster`] where the scheduler does not answer or does not know the job.
    pub async fn metrics(&self, job: &JobId) -> Result<Metrics> {
        let mut scheduler = self.scheduler();
        let question = GetJobMetricsParams { job_id: job.to_string() };
        let stages = self.answer(scheduler.get_job_metrics(question)).await?.stages;
        let operators = stages.into_iter().flat_map(|stage| stage.operators);
        Ok(sums(operators.flat_map(|operator| operator.metrics)))
    }

    /// Asks the scheduler to end a job.
    ///
    /// # Errors
    /// [`Error::Cluster`] where the scheduler does not answer.
    pub async fn cancel(&self, job: &JobId) -> Result<()> {
        let mut scheduler = self.scheduler();
        self.answer(scheduler.cancel_job(CancelJobParams { job_id: job.to_string() })).await.map(drop)
    }

    /// Lets the scheduler forget a finished job whose rows are fetched. It would keep the job's plan for minutes otherwise.
    ///
    /// # Errors
    /// [`Error::Cluster`] where the scheduler does not answer. It then keeps the job for those minutes.
    pub async fn forget(&self, job: &JobId) -> Result<()> {
        let request = http::Request::delete(format!("{JOBS}/{job}")).body(tonic::body::Body::empty());
        let call = board::call(&self.channel, "cannot end a job", request);
        timeout(ANSWER, call).await.unwrap_or_else(|_| Err(self.silent("no answer"))).map(drop)
    }

    fn scheduler(&self) -> SchedulerGrpcClient<Channel> {
        SchedulerGrpcClient::new(self.channel.clone())
            .max_encoding_message_size(MOST_BYTES)
            .max_decoding_message_size(MOST_BYTES)
    }

    async fn answer<T>(&self, call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T> {
        match timeout(ANSWER, call).await {
            Err(_) => Err(self.silent(&format!("no answer within {} s", ANSWER.as_secs()))),
            Ok(Err(status)) => Err(self.silent(&said(&status))),
            Ok(Ok(response)) => Ok(response.into_inner()),
        }
    }

    fn silent(&self, why: &str) -> Error {
        Error::Cluster(format!("the scheduler at {} does not answer: {why}; check that it runs", self.address))
    }

    /// The rows of one partition, from the executor that holds them.
    async fn partition(
        &self,
        partition: PartitionLocation,
    ) -> Result<impl Stream<Item = Result<RecordBatch>> + Send + use<>> {
        let layout = partition.layout();
        let (Some(id), Some(executor)) = (partition.partition_id, partition.executor_meta) else {
            return Err(Error::Cluster(format!("the scheduler at {} does not say where a result lies", self.address)));
        };
        let place = format!("{}:{}", executor.host, executor.port);
        let lost = {
            let place = place.clone();
            move |why: &str| Error::Cluster(format!("cannot fetch a result from the executor at {place}: {why}"))
        };
        let opened = timeout(CONNECT + ANSWER, async {
            let mut flight = self.executor(&executor).await?;
            // Blocks of the executor's file, which have no largest size, and not Flight's messages, which have.
            flight.fetch_partition(&executor.id, &id.into(), partition.file_id, layout, false).await
        });
        let rows = match opened.await {
            Err(_) => return Err(lost("no answer in time")),
            Ok(opened) => opened.map_err(|e| lost(&e.to_string()))?,
        };
        Ok(futures::stream::unfold(Some(rows), move |rows| next_batch(rows, lost.clone())))
    }

    async fn executor(&self, executor: &ExecutorMetadata) -> ballista_core::error::Result<BallistaClient> {
        let tls = self.tls.clone();
        let configure = BallistaConfigGrpcEndpoint::new(Arc::new(move |given| Ok(endpoint(given, tls.as_ref())?)));
        let (use_tls, port) = (self.tls.is_some(), u16::try_from(executor.port).unwrap_or_default());
        // Two attempts, 250 ms apart; windows of the default size.
        BallistaClient::try_new(&executor.host, port, MOST_BYTES, use_tls, Some(Arc::new(configure)), 2, 250, 0, 0)
            .await
    }
}

fn encoded(plan: Arc<dyn ExecutionPlan>, codec: &dyn PhysicalExtensionCodec) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    PhysicalPlanNode::try_from_physical_plan(plan, codec)?.try_encode(&mut bytes)?;
    Ok(bytes)
}

/// [`Client::is_shallow`].
pub(super) fn is_shallow(plan: &Arc<dyn ExecutionPlan>, codec: &dyn PhysicalExtensionCodec) -> Result<bool> {
    Ok(PhysicalPlanNode::try_decode(&encoded(Arc::clone(plan), codec)?).is_ok())
}

/// The next batch within [`BATCH`], and the rest of the rows, which an error ends.
async fn next_batch(
    rows: Option<SendableRecordBatchStream>,
    lost: impl Fn(&str) -> Error,
) -> Option<(Result<RecordBatch>, Option<SendableRecordBatchStream>)> {
    let mut rows = rows?;
    match timeout(BATCH, rows.next()).await {
        Err(_) => Some((Err(lost(&format!("no rows within {} s", BATCH.as_secs()))), None)),
        Ok(None) => None,
        Ok(Some(Err(e))) => Some((Err(lost(&e.to_string())), None)),
        Ok(Some(Ok(batch))) => Some((Ok(batch), Some(rows))),
    }
}

fn sums(metrics: impl Iterator<Item = OperatorMetric>) -> Metrics {
    use operator_metric::Metric as M;
    let mut sums = Metrics::new();
    for metric in metrics.filter_map(|metric| metric.metric) {
        let (name, value) = match metric {
            M::OutputRows(value) => ("output_rows".to_owned(), value),
            M::OutputBytes(value) => ("output_bytes".to_owned(), value),
            M::OutputBatches(value) => ("output_batches".to_owned(), value),
            M::ElapseTime(value) => ("elapsed_compute".to_owned(), value),
            M::SpillCount(value) => ("spill_count".to_owned(), value),
            M::SpilledBytes(value) => ("spilled_bytes".to_owned(), value),
            M::SpilledRows(value) => ("spilled_rows".to_owned(), value),
            M::Count(count) => (count.name, count.value),
            M::Gauge(gauge) => (gauge.name, gauge.value),
            M::Time(time) => (time.name, time.value),
            // They are no sums.
            M::CurrentMemoryUsage(_)
            | M::StartTimestamp(_)
            | M::EndTimestamp(_)
            | M::PruningMetrics(_)
            | M::Ratio(_) => continue,
        };
        *sums.entry(name).or_default() += value;
    }
    sums
}

#[cfg(test)]
mod tests {
    use ballista_core::serde::BallistaPhysicalExtensionCodec;
    use ballista_core::serde::protobuf::NamedTime;

    use super::*;

    #[tokio::test]
    async fn no_scheduler_is_said_at_once_with_its_address() {
        // Bound and closed: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let url = format!("127.0.0.1:{port}");
        let codec = Arc::new(BallistaPhysicalExtensionCodec::default());
        let error = Client::connect(&url, None, codec).await.unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, Error::Cluster(_)), "{said}");
        assert!(said.contains(&url) && said.contains("neurosieve scheduler"), "{said}");
    }

    #[test]
    fn metrics_of_one_name_are_added() {
        let time = |value| {
            let time = NamedTime { name: "score".to_owned(), value };
            OperatorMetric { partition: None, metric: Some(operator_metric::Metric::Time(time)) }
        };
        let rows = OperatorMetric { partition: Some(0), metric: Some(operator_metric::Metric::OutputRows(5)) };
        let sums = sums([time(3), rows, time(4)].into_iter());
        assert_eq!(sums, Metrics::from([("score".to_owned(), 7), ("output_rows".to_owned(), 5)]));
    }
}
