//! SQL on a cluster: planned here, run by executors.
//!
//! ```text
//! statement ─► plan, optimized here ─┬─ reads files: ClusterQueryExec ─► a job ─► rows, fetched from the executors
//!                                    └─ anything else runs here: SHOW, EXPLAIN, DDL, queries without a table, plans that are
//!                                       deeper than a message may be
//! ```
//! The seam is the session's query planner, so that what uses a session (`query::execute`, the shell, `COPY`) is the same with
//! a cluster and without. A plan crosses the wire as operators of the engine: the tables are plain scans of Parquet files, and
//! a plan with another leaf runs here. Which plans Ballista runs correctly, its own settings decide: no round-robin
//! repartition, no view types, no dynamic filters, no scalar subqueries of the physical plan.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use ballista_core::extension::SessionConfigExt as _;
use ballista_core::optimizer::ballista_default_optimizer_rules;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::config::ConfigOptions;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::sink::DataSinkExec;
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::context::QueryPlanner;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SendableRecordBatchStream, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::analyze::AnalyzeExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties,
    ReplaceChildrenOptions,
};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner as _};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::{StreamExt as _, TryStreamExt as _};

use super::client::{Client, JobId, JobState, PartitionLocation};
use super::parquet::ParquetTable;
use super::registry::StoreRegistry;
use crate::error::{Error, Result};
use crate::flow::Refusal;
use crate::query::{self, Engine};
use crate::tables::{Table, Tables, register_live, session_config};
use crate::terminal::errln;

/// The time between two questions for the state of a job.
const POLL: Duration = Duration::from_millis(50);

/// How long the scheduler may not answer before a query fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long until a line says so.
const SAID_AFTER: Duration = Duration::from_secs(5);

/// Partitions of a query where no executor has reported its slots yet.
const ASSUMED_SLOTS: usize = 8;

/// The session of [`query::session`], whose queries of the tables run on a cluster.
///
/// # Errors
/// [`Error::Cluster`] where the scheduler does not answer; those of [`reload`].
pub async fn session(tables: &Tables, client: Client, engine: Arc<Engine>) -> Result<SessionContext> {
    let slots: usize = client.stations().await?.iter().filter(|s| s.unfit.is_none()).map(|s| s.slots).sum();
    if slots == 0 {
        errln!(
            "no executor has reported to the scheduler at {0}: queries wait until one does; start it with `neurosieve \
             executor --scheduler {0}`",
            client.address()
        );
    }
    let slots = if slots == 0 { ASSUMED_SLOTS } else { slots };
    let planner = Arc::new(ClusterPlanner { client });
    let builder = SessionStateBuilder::new().with_query_planner(planner);
    let runtime = engine.within_memory(RuntimeEnvBuilder::new());
    let config = session_config().with_target_partitions(slots).with_extension(engine);
    let context = context(builder, config, runtime)?;
    query::register_functions(&context);
    reload(&context, tables).await?;
    Ok(context)
}

/// Gives a [`session`] the tables as of their last refresh. Views and settings of its user stay.
///
/// # Errors
/// Those of [`ParquetTable::open`] and of [`query::add_views`].
pub async fn reload(context: &SessionContext, tables: &Tables) -> Result<()> {
    let mut providers: Vec<(Table, Arc<dyn TableProvider>)> = Vec::new();
    for table in tables.present() {
        providers.push((table, Arc::new(ParquetTable::open(tables, table)?)));
    }
    register_live(context, providers).await?;
    query::add_views(context, tables).await
}

/// A session whose plans Ballista can run, and that opens stores as executors do.
fn context(builder: SessionStateBuilder, config: SessionConfig, runtime: RuntimeEnvBuilder) -> Result<SessionContext> {
    let runtime = runtime.with_object_store_registry(Arc::new(StoreRegistry::default()));
    let builder = builder
        .with_config(config.upgrade_for_ballista())
        .with_runtime_env(runtime.build_arc()?)
        .with_default_features()
        .with_optimizer_rules(ballista_default_optimizer_rules());
    Ok(SessionContext::new_with_state(builder.build()))
}

/// Plans like the engine, and puts a query of files behind [`ClusterQueryExec`].
#[derive(Debug)]
struct ClusterPlanner {
    client: Client,
}

#[async_trait]
impl QueryPlanner for ClusterPlanner {
    async fn create_physical_plan(
        &self,
        logical_plan: &LogicalPlan,
        session: &dyn Session,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let plan = DefaultPhysicalPlanner::default().create_physical_plan(logical_plan, session).await?;
        let remote = |plan: &Arc<dyn ExecutionPlan>| -> Arc<dyn ExecutionPlan> {
            Arc::new(ClusterQueryExec::new(self.client.clone(), Arc::clone(plan), settings(session.config_options())))
        };
        // COPY writes where this command runs.
        if let Some(sink) = plan.downcast_ref::<DataSinkExec>() {
            if !self.takes(sink.input())? {
                return Ok(plan);
            }
            let input = remote(sink.input());
            return plan.replace_children(vec![input], ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute));
        }
        Ok(if self.takes(&plan)? { remote(&plan) } else { plan })
    }
}

impl ClusterPlanner {
    /// True for a plan that the cluster runs; the others run in this process.
    fn takes(&self, plan: &Arc<dyn ExecutionPlan>) -> Result<bool> {
        Ok(runs_on_cluster(plan) && self.client.is_shallow(plan)?)
    }
}

/// True where a plan reads files, and has no leaf that only this process knows.
fn runs_on_cluster(plan: &Arc<dyn ExecutionPlan>) -> bool {
    fn crosses(plan: &Arc<dyn ExecutionPlan>, reads: &mut bool) -> bool {
        if let Some(leaf) = plan.downcast_ref::<DataSourceExec>() {
            let source: &dyn Any = leaf.data_source().as_ref();
            *reads |= source.is::<FileScanConfig>();
            return true;
        }
        let children = plan.children();
        match children.is_empty() {
            true => plan.is::<EmptyExec>() || plan.is::<PlaceholderRowExec>(),
            false => children.into_iter().all(|child| crosses(child, reads)),
        }
    }
    let mut reads = false;
    // EXPLAIN ANALYZE measures operators, which those of another process are not.
    !plan.is::<AnalyzeExec>() && crosses(plan, &mut reads) && reads
}

/// The settings that matter where a plan runs: sizes of batches, the time zone, what spills.
fn settings(options: &ConfigOptions) -> Vec<(String, String)> {
    let sent = ["datafusion.execution.", "datafusion.optimizer."];
    let entries = options.entries().into_iter().filter(|e| sent.iter().any(|prefix| e.key.starts_with(prefix)));
    entries.filter_map(|entry| Some((entry.key, entry.value?))).collect()
}

/// Runs a plan on a cluster and gives its rows.
///
/// **Partitioning**: one partition, whatever the plan's are; their rows follow each other in order. **Memory**: a batch at a
/// time. **Faults**: a scheduler that is silent for long, or that forgot the query, and an executor that is gone end the
/// query with [`Error::Cluster`]. A query that is dropped before its end is cancelled.
struct ClusterQueryExec {
    client: Client,
    plan: Arc<dyn ExecutionPlan>,
    settings: Vec<(String, String)>,
    properties: Arc<PlanProperties>,
}

impl ClusterQueryExec {
    fn new(client: Client, plan: Arc<dyn ExecutionPlan>, settings: Vec<(String, String)>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(plan.schema()),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Final,
            Boundedness::Bounded,
        );
        Self { client, plan, settings, properties: Arc::new(properties) }
    }
}

impl fmt::Debug for ClusterQueryExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterQueryExec")
    }
}

impl DisplayAs for ClusterQueryExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterQueryExec")
    }
}

impl ExecutionPlan for ClusterQueryExec {
    fn name(&self) -> &str {
        "ClusterQueryExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        // The plan inside runs elsewhere, and is no input of this process.
        Vec::new()
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        _: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _: usize, _: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let schema = self.plan.schema();
        let (client, plan, settings) = (self.client.clone(), Arc::clone(&self.plan), self.settings.clone());
        let rows = futures::stream::once(async move {
            let job = client.submit_with(plan, "sql", settings).await?;
            let unfinished = Unfinished { client: client.clone(), job: Some(job.clone()) };
            let partitions = wait(&client, &job).await;
            unfinished.ended();
            Ok::<_, Error>(client.rows(partitions?))
        });
        let of_plan = Arc::clone(&schema);
        let rows = rows.try_flatten().map(move |batch| {
            let batch = batch.map_err(DataFusionError::from)?;
            // Shuffle files keep the types of columns, and not all of their metadata.
            let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
            let columns = batch.columns().to_vec();
            Ok(RecordBatch::try_new_with_options(Arc::clone(&of_plan), columns, &options)?)
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }
}

/// Waits for the end of a query.
async fn wait(client: &Client, job: &JobId) -> Result<Vec<PartitionLocation>> {
    let (mut silent, mut said): (Option<Instant>, bool) = (None, false);
    loop {
        match client.poll(job).await {
            Ok(JobState::Done(partitions)) => return Ok(partitions),
            Ok(JobState::Failed(text)) => {
                let why = Refusal::find(&text).map_or(text, |refusal| refusal.message);
                return Err(Error::Cluster(format!("the query failed on the cluster: {why}")));
            }
            Ok(JobState::Unknown) => {
                return Err(Error::Cluster(format!(
                    "the scheduler at {} was restarted and has forgotten the query: run it again",
                    client.address()
                )));
            }
            Ok(JobState::Queued | JobState::Running) => (silent, said) = (None, false),
            Err(error) => {
                let since = silent.get_or_insert_with(Instant::now).elapsed();
                if since > PATIENCE {
                    return Err(error);
                }
                if since > SAID_AFTER && !said {
                    errln!(
                        "the scheduler at {} does not answer: waiting for it up to {} s",
                        client.address(),
                        PATIENCE.as_secs()
                    );
                    said = true;
                }
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Cancels its job where the query is dropped, as Ctrl-C in the shell does.
struct Unfinished {
    client: Client,
    job: Option<JobId>,
}

impl Unfinished {
    fn ended(mut self) {
        self.job = None;
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let (Some(job), Ok(runtime)) = (self.job.take(), tokio::runtime::Handle::try_current()) else { return };
        let client = self.client.clone();
        // Where the scheduler does not answer, the query ends by itself.
        runtime.spawn(async move { client.cancel(&job).await });
    }
}

#[cfg(test)]
mod tests {
    use arrow::util::pretty::pretty_format_batches;
    use ballista_core::serde::BallistaPhysicalExtensionCodec;
    use datafusion::physical_plan::collect;
    use datafusion_proto::physical_plan::{AsExecutionPlan as _, PhysicalExtensionCodec};
    use datafusion_proto::protobuf::PhysicalPlanNode;

    use super::super::client::is_shallow;
    use super::super::parquet::tests::written;
    use super::*;

    /// A session that plans for a cluster, without one.
    async fn planned_for_a_cluster(tables: &Tables) -> SessionContext {
        let config = session_config().with_target_partitions(3);
        let context = context(SessionStateBuilder::new(), config, RuntimeEnvBuilder::new()).unwrap();
        query::register_functions(&context);
        reload(&context, tables).await.unwrap();
        context
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_view_crosses_the_wire_and_gives_its_rows() {
        let (_folder, tables) = written().await;
        let [local, context] = [query::session(&tables).await.unwrap(), planned_for_a_cluster(&tables).await];
        let codec: &dyn PhysicalExtensionCodec = &BallistaPhysicalExtensionCodec::default();
        let mut too_deep = Vec::new();
        for view in query::views().into_iter().filter(|view| view.needs.is_none()) {
            let sql = format!("SELECT * FROM {} ORDER BY 1, 2", view.name);
            let plan = context.sql(&sql).await.unwrap().create_physical_plan().await.unwrap();
            if !is_shallow(&plan, codec).unwrap() {
                too_deep.push(view.name);
                continue;
            }
            let mut bytes = Vec::new();
            PhysicalPlanNode::try_from_physical_plan(plan, codec).unwrap().try_encode(&mut bytes).unwrap();
            let task = context.task_ctx();
            let plan = PhysicalPlanNode::try_decode(&bytes).unwrap().try_into_physical_plan(&task, codec).unwrap();
            let found = pretty_format_batches(&collect(plan, task).await.unwrap()).unwrap().to_string();
            let expected = local.sql(&sql).await.unwrap().collect().await.unwrap();
            assert_eq!(found, pretty_format_batches(&expected).unwrap().to_string(), "{}", view.name);
        }
        // They run where the command runs.
        assert_eq!(too_deep, ["region_percentiles"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn queries_of_the_tables_run_on_the_cluster_and_all_else_here() {
        let (_folder, tables) = written().await;
        let context = planned_for_a_cluster(&tables).await;
        for (sql, remote) in [
            ("SELECT run_id FROM runs", true),
            ("SELECT device, count(DISTINCT run_id) FROM runs WHERE status NOT IN (SELECT 'x') GROUP BY device", true),
            ("SELECT * FROM raw.runs JOIN (VALUES ('run-1')) v(id) ON run_id = id", true),
            ("SELECT * FROM (SELECT run_id FROM raw.runs UNION ALL SELECT run_id FROM raw.reverts) LIMIT 3", true),
            ("SELECT 1", false),
            ("SHOW TABLES", false),
            ("EXPLAIN SELECT run_id FROM runs", false),
            ("EXPLAIN ANALYZE SELECT run_id FROM raw.runs", false),
            ("SELECT table_name FROM information_schema.tables JOIN raw.runs ON table_name = run_id", false),
        ] {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            assert_eq!(runs_on_cluster(&plan), remote, "{sql}");
        }
    }

    #[test]
    fn only_settings_of_execution_are_sent() {
        let sent = settings(session_config().options());
        assert!(sent.iter().any(|(key, _)| key == "datafusion.execution.batch_size"));
        assert!(sent.iter().all(|(key, _)| !key.contains("catalog") && !key.contains("runtime")));
    }
}
