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
//! The steps are in `scan.rs`. **Partitioning**: unary and partition-preserving, one output partition per input partition.
//! **Ordering**: rows come in the order in which scans finish. **Memory**: reserved from the budget before a scan is
//! fetched; a volume never leaves its scan. **Faults**: a scan that fails is a row; only a defect of this program stops the
//! plan.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{
    CardinalityEffect, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, SendableRecordBatchStream,
};
use futures::{StreamExt, TryStreamExt, future, stream};

use super::journey::ScreenMetrics;
use super::order::Order;
use super::scan;
use super::station::Station;
use crate::cohort::manifest;
use crate::tables::screen_schema;

/// Screens the scans of its input; see the module's documentation.
#[derive(Debug, Clone)]
pub struct ScreenExec {
    input: Arc<dyn ExecutionPlan>,
    order: Arc<Order>,
    station: Arc<Station>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl ScreenExec {
    /// An operator over manifest rows, with the schema of [`manifest::schema`].
    pub fn new(input: Arc<dyn ExecutionPlan>, order: Arc<Order>, station: Arc<Station>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(screen_schema()),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        );
        Self { input, order, station, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() }
    }
}

impl DisplayAs for ScreenExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Order { bundle, recipe_id, .. } = self.order.as_ref();
        let Station { device, in_flight, budget, .. } = self.station.as_ref();
        let memory = budget.scans_mib();
        write!(
            f,
            "ScreenExec: bundle={bundle}, device={device}, recipe={recipe_id}, in_flight={in_flight}, memory={memory} MiB"
        )
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
        Ok(Arc::new(Self::new(input, Arc::clone(&self.order), Arc::clone(&self.station))))
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
        let (order, station) = (Arc::clone(&self.order), Arc::clone(&self.station));
        let stopped = {
            let station = Arc::clone(&station);
            async move { station.stop.pressed().await }
        };
        let in_flight = station.in_flight;
        let scans = self.input.execute(partition, context)?.map(|batch| {
            let entries = manifest::from_batch(&batch?)?;
            Ok::<_, DataFusionError>(stream::iter(entries.into_iter().map(Ok)))
        });
        let rows = scans
            .try_flatten()
            .take_until(stopped)
            .map_ok(move |entry| {
                let screened = scan::screen(Arc::clone(&order), Arc::clone(&station), metrics.clone(), entry);
                async move { Ok(screened.await?) }
            })
            .try_buffer_unordered(in_flight)
            .try_filter_map(future::ok);
        Ok(Box::pin(RecordBatchStreamAdapter::new(screen_schema(), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
