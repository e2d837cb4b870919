//! [`ScreenExec`]: from manifest rows to the results of scans.
//!
//! ```text
//!  manifest rows (one row = one scan)
//!      │  at most `in_flight` scans at a time over all partitions, each with its share of the memory budget
//!      ▼
//!  fetch (tokio) ─► decode ─► preprocess (rayon) ─► score (device threads) ─► assess (rayon)
//!      │ an error or a panic at any stage
//!      ▼
//!  one row of `screen_schema` per scan: its rows for every table, or its row in `failures`
//! ```
//! The steps are in `scan.rs`. They run on the runtime of the process's [`Station`], which is an extension of the session's
//! configuration. **Partitioning**: unary and partition-preserving, one output partition per input partition.
//! **Ordering**: rows come in the order in which scans finish. **Memory**: reserved from the budget before a scan is
//! fetched; a volume never leaves its scan. **Faults**: a scan that fails is a row. In a run of one process only a defect of this
//! program stops the plan: what else ends the run presses its switch, and finished scans are still written. On a cluster the
//! plan of a chunk also fails where its process cannot do the work, with a [`Refusal`], and where a store or the device stays
//! down.

use std::fmt;
use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt, future, stream};
use tokio::sync::mpsc::Sender;

use super::fitness;
use super::journey::ScreenMetrics;
use super::order::Order;
use super::refusal::{Reason, Refusal, lost_processes};
use super::scan;
use super::station::Station;
use super::work::Work;
use crate::cohort::manifest;
use crate::tables::screen_schema;

/// Screens the scans of its input; see the module's documentation.
#[derive(Debug, Clone)]
pub struct ScreenExec {
    input: Arc<dyn ExecutionPlan>,
    order: Arc<Order>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ScreenExec {
    /// An operator over manifest rows, with the schema of [`manifest::schema`].
    pub fn new(input: Arc<dyn ExecutionPlan>, order: Arc<Order>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(screen_schema()),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        );
        Self { input, order, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }

    /// What is ordered.
    pub fn order(&self) -> &Arc<Order> {
        &self.order
    }
}

impl DisplayAs for ScreenExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Order { bundle, recipe_id, .. } = self.order.as_ref();
        // An engine may log this: no address.
        write!(f, "ScreenExec: bundle={bundle}, recipe={recipe_id}")
    }
}

impl ExecutionPlan for ScreenExec {
    fn name(&self) -> &'static str {
        "ScreenExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [input] = <[_; 1]>::try_from(children)
            .map_err(|c| DataFusionError::Internal(format!("ScreenExec has one input, not {}", c.len())))?;
        Ok(Arc::new(Self::new(input, Arc::clone(&self.order))))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        // A repartition below would only move scans between partitions that screen equally well.
        vec![false]
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::Equal
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = ScreenMetrics::new(&self.metrics, partition);
        let (order, station) = (Arc::clone(&self.order), Station::of(&context)?);
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let task = context.task_id().as_deref().map(lost_processes).transpose()?;
        let mut builder = RecordBatchReceiverStream::builder(screen_schema(), 1);
        let (runtime, rows) = (station.runtime.clone(), builder.tx());
        let screening = async move {
            if task.is_some_and(|lost| lost >= MOST_LOST) {
                let message = format!("{MOST_LOST} executors were lost while they screened these scans");
                return Err(Refusal::new(Reason::Lost, message).into());
            }
            let setup = fitness::setup(&station, &order).await?;
            let work = Work { order, station, setup };
            screen(work.clone(), input, metrics, rows).await?;
            // Without a task of an engine, the driver in this process takes the failure.
            if task.is_none() || !work.setup.has_failed() {
                return Ok(());
            }
            let failure = work.setup.stop.take_failure();
            Err(failure.map_or_else(fitness::failed_meanwhile, |failure| fitness::failed(&work.station, failure)))
        };
        builder.spawn_on(screening, &runtime);
        Ok(builder.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// Processes that may be lost with the same scans before these are refused.
const MOST_LOST: u64 = 2;

/// Screens the scans of `input` and sends their rows, until all are sent, the work is to stop or nobody takes rows any more.
async fn screen(
    work: Work,
    input: SendableRecordBatchStream,
    metrics: ScreenMetrics,
    rows: Sender<Result<RecordBatch>>,
) -> Result<()> {
    let (setup, in_flight) = (Arc::clone(&work.setup), work.station.in_flight);
    let scans = input.map(|batch| {
        let entries = manifest::from_batch(&batch?)?;
        Ok::<_, DataFusionError>(stream::iter(entries.into_iter().map(Ok)))
    });
    let screened = scans
        .try_flatten()
        .take_until(setup.stop.pressed())
        .map_ok(move |entry| {
            let screened = scan::screen(work.clone(), metrics.clone(), entry);
            async move { Ok::<_, DataFusionError>(screened.await?) }
        })
        .try_buffer_unordered(in_flight)
        .try_filter_map(future::ok);
    tokio::pin!(screened);
    while let Some(row) = screened.next().await {
        // The receiver is dropped where the query was stopped.
        if rows.send(Ok(row?)).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}
