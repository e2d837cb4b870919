//! [`WriteExec`]: from the rows of scans to data files in the store.
//!
//! ```text
//!  ScreenExec ─► rows of screen_schema(), one per scan
//!      │ hold                     bytes registered with the memory pool
//!      ▼
//!  a roll: N scans, N bytes, N seconds or the end of input
//!      │ sort by scan_id, encode  off the asynchronous threads; one Parquet file per table that has rows
//!      │ put
//!      ▼
//!  one batch of receipts per roll ─► the driver, which commits
//! ```
//! Holding and writing are in `roll.rs`. **Partitioning**: each partition holds and writes its own rolls; partitions are the
//! input's. **Ordering**: receipts come in the order of the rolls; rows inside a file are sorted by
//! [`Table::sorted_by`](crate::tables::Table::sorted_by). **Memory**: one roll that is written and one that is held, per
//! partition; when both are full the input waits. A pool that refuses more ends the roll but not the run: the rows exist
//! already, and losing them would be worse. **Faults**: a scan that breaks its contract stops the plan, since that is a defect
//! of this program; a store that fails for longer than [`RunLimits`] allow stops it with an I/O error, which an engine may
//! retry. Files without a commit are not part of any table.

use std::fmt;
use std::sync::Arc;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{CardinalityEffect, EmissionType};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchReceiverStream;
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties,
    ReplaceChildrenOptions,
};

use tokio::runtime::Handle;

use super::order::Order;
use super::roll::{RollPolicy, RollWriter, RunLimits};
use super::station::Station;
use crate::error::Error;
use crate::store::Location;
use crate::tables::{Receipt, screen_schema};

/// Writes the scans of its input to data files and emits receipts; see the module's documentation.
pub struct WriteExec {
    input: Arc<dyn ExecutionPlan>,
    target: Target,
    policy: RollPolicy,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// Where a writer's files go.
#[derive(Debug, Clone)]
pub enum Target {
    /// Below this root of the tables.
    Opened(Location),
    /// To the tables of an order, which the station of the process opens.
    OfOrder(Arc<Order>),
}

impl WriteExec {
    /// A writer to `target`. The input's schema must be [`screen_schema`].
    ///
    /// # Errors
    /// [`Error::Bug`] where the input has another schema.
    pub fn try_new(input: Arc<dyn ExecutionPlan>, target: Target, policy: RollPolicy) -> Result<Self> {
        if input.schema() != screen_schema() {
            let found = input.schema();
            return Err(Error::Bug(format!("WriteExec takes rows of whole scans, not {found}")).into());
        }
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Receipt::schema()),
            input.output_partitioning().clone(),
            EmissionType::Incremental,
            input.boundedness(),
        );
        Ok(Self { input, target, policy, properties: Arc::new(properties), metrics: ExecutionPlanMetricsSet::new() })
    }

    /// Where its files go.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// When held scans are written out.
    pub fn policy(&self) -> RollPolicy {
        self.policy
    }
}

impl fmt::Debug for WriteExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { input, target, policy, properties: _, metrics: _ } = self;
        f.debug_struct("WriteExec").field("input", input).field("target", target).field("policy", policy).finish()
    }
}

impl DisplayAs for WriteExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RollPolicy { scans, bytes, every } = self.policy;
        write!(f, "WriteExec: roll at {scans} scans, {} MiB or {} s", bytes >> 20, every.as_secs())
    }
}

impl ExecutionPlan for WriteExec {
    fn name(&self) -> &str {
        Self::static_name()
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn benefits_from_input_partitioning(&self) -> Vec<bool> {
        // A repartition below would only mix scans between partitions that write equally well.
        vec![false]
    }

    fn cardinality_effect(&self) -> CardinalityEffect {
        CardinalityEffect::LowerEqual
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
            .map_err(|c| DataFusionError::Internal(format!("WriteExec has one input, not {}", c.len())))?;
        Ok(Arc::new(Self::try_new(input, self.target.clone(), self.policy)?))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let input = self.input.execute(partition, Arc::clone(&context))?;
        let pool = Arc::clone(context.memory_pool());
        let station = match &self.target {
            Target::OfOrder(_) => Some(Station::of(&context)?),
            Target::Opened(_) => None,
        };
        let runtime = station.as_ref().map_or_else(Handle::current, |station| station.runtime.clone());
        // Capacity 1: a driver that commits slowly slows the writing down; receipts do not pile up in memory.
        let mut builder = RecordBatchReceiverStream::builder(Receipt::schema(), 1);
        let (receipts, target, policy, metrics) =
            (builder.tx(), self.target.clone(), self.policy, self.metrics.clone());
        let writing = async move {
            let (target, limits) = match (target, station) {
                (Target::OfOrder(order), Some(station)) => {
                    let setup = station.setup(&order).await?;
                    (setup.tables.clone(), setup.limits(order.longest_outage))
                }
                (Target::OfOrder(_), None) => return Err(Error::Bug("a writer without a station".into()).into()),
                (Target::Opened(target), _) => (target, RunLimits::default()),
            };
            let writer = RollWriter::new(target, (policy, limits), pool, &metrics, partition);
            Arc::new(writer).run(input, receipts).await
        };
        builder.spawn_on(writing, &runtime);
        Ok(builder.build())
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
