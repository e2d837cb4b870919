//! The codec of plans: how our operators cross a wire, as JSON behind a magic word.
//!
//! Decoding opens nothing: the scheduler decodes plans too, and an executor does so between two polls. What a process needs is
//! opened by its [`Station`](crate::flow::Station) when the plan is executed.

use std::fmt;
use std::sync::Arc;

use ballista_core::serde::BallistaPhysicalExtensionCodec;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::TaskContext;
use datafusion::logical_expr::ScalarUDF;
use datafusion::physical_plan::ExecutionPlan;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::flow::{Order, RollPolicy, ScreenExec, Target, WriteExec};
use crate::query::functions;

/// The first bytes of each of our operators. Ballista's own operators are Protobuf and never start with them.
const MAGIC: &[u8] = b"neurosieve\0";

/// Our operators without their input.
#[derive(Serialize, Deserialize)]
enum Operator {
    Screen(Order),
    Write { order: Order, policy: RollPolicy },
}

/// Encodes and decodes [`ScreenExec`], [`WriteExec`] and the functions of [`crate::query`]; the rest is Ballista's.
#[derive(Default)]
pub struct Codec(BallistaPhysicalExtensionCodec);

impl fmt::Debug for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Codec")
    }
}

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        inputs: &[Arc<dyn ExecutionPlan>],
        context: &TaskContext,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let Some(json) = bytes.strip_prefix(MAGIC) else {
            return self.0.try_decode(bytes, inputs, context, converter);
        };
        let unknown = |e| DataFusionError::Execution(format!("an operator of another version of neurosieve: {e}"));
        let operator = serde_json::from_slice(json).map_err(unknown)?;
        let [input] = inputs else {
            return Err(Error::Bug(format!("an operator with {} inputs", inputs.len())).into());
        };
        Ok(match operator {
            Operator::Screen(order) => Arc::new(ScreenExec::new(Arc::clone(input), Arc::new(order))),
            Operator::Write { order, policy } => {
                Arc::new(WriteExec::try_new(Arc::clone(input), Target::OfOrder(Arc::new(order)), policy)?)
            }
        })
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        converter: &dyn PhysicalProtoConverterExtension,
    ) -> Result<()> {
        let operator = if let Some(screen) = node.downcast_ref::<ScreenExec>() {
            Operator::Screen(screen.order().as_ref().clone())
        } else if let Some(write) = node.downcast_ref::<WriteExec>() {
            let Target::OfOrder(order) = write.target() else {
                return Err(Error::Bug("a writer to an opened store cannot be sent".into()).into());
            };
            Operator::Write { order: order.as_ref().clone(), policy: write.policy() }
        } else {
            return self.0.try_encode(node, bytes, converter);
        };
        bytes.extend_from_slice(MAGIC);
        serde_json::to_writer(bytes, &operator).map_err(|e| Error::Bug(format!("an operator as JSON: {e}")).into())
    }

    /// Our functions cross by their names.
    fn try_decode_udf(&self, name: &str, bytes: &[u8]) -> Result<Arc<ScalarUDF>> {
        match functions().find(|function| function.name() == name) {
            Some(function) => Ok(function),
            None => self.0.try_decode_udf(name, bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use datafusion::catalog::memory::MemorySourceConfig;
    use datafusion::physical_plan::displayable;
    use datafusion::prelude::SessionContext;
    use datafusion_proto::physical_plan::AsExecutionPlan as _;
    use datafusion_proto::protobuf::PhysicalPlanNode;

    use super::*;
    use crate::cohort::{ScanEntry, manifest};

    #[tokio::test]
    async fn functions_cross_by_their_names_to_a_process_whose_sessions_lack_them() {
        let context = SessionContext::new();
        crate::query::register_functions(&context);
        let sql = "SELECT region_at(x, y, z) AS region FROM (VALUES (-20, -10, 84), (20, -112, -4)) v(x, y, z)";
        let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
        let codec = Codec::default();
        let mut bytes = Vec::new();
        PhysicalPlanNode::try_from_physical_plan(plan, &codec).unwrap().try_encode(&mut bytes).unwrap();
        let bare = SessionContext::new().task_ctx();
        let plan = PhysicalPlanNode::try_decode(&bytes).unwrap().try_into_physical_plan(&bare, &codec).unwrap();
        let rows = datafusion::physical_plan::collect(plan, bare).await.unwrap();
        let shown = arrow::util::pretty::pretty_format_batches(&rows).unwrap().to_string();
        assert!(shown.contains("| left frontal lobe") && shown.contains("| right occipital lobe"), "{shown}");
    }

    #[test]
    fn the_plan_of_a_chunk_survives_the_wire_and_shows_no_address() {
        let order = Arc::new(Order::sample());
        let scans = manifest::to_batch(&["a", "b"].map(ScanEntry::sample)).unwrap();
        let leaf = MemorySourceConfig::try_new_exec(&[vec![scans]], manifest::schema(), None).unwrap();
        let screen = Arc::new(ScreenExec::new(leaf, Arc::clone(&order)));
        let policy = RollPolicy { scans: 7, ..RollPolicy::default() };
        let plan: Arc<dyn ExecutionPlan> =
            Arc::new(WriteExec::try_new(screen, Target::OfOrder(Arc::clone(&order)), policy).unwrap());

        let codec = Codec::default();
        let mut bytes = Vec::new();
        PhysicalPlanNode::try_from_physical_plan(Arc::clone(&plan), &codec).unwrap().try_encode(&mut bytes).unwrap();
        let context = SessionContext::new().task_ctx();
        let decoded = PhysicalPlanNode::try_decode(&bytes).unwrap().try_into_physical_plan(&context, &codec).unwrap();

        let shown = displayable(decoded.as_ref()).indent(true).to_string();
        assert_eq!(shown, displayable(plan.as_ref()).indent(true).to_string());
        assert!(!shown.contains("bucket") && !format!("{decoded:?}").is_empty(), "{shown}");
        let write = decoded.downcast_ref::<WriteExec>().unwrap();
        assert_eq!(write.policy(), policy);
        let screen = write.children()[0].downcast_ref::<ScreenExec>().unwrap();
        assert_eq!(screen.order(), &order);
    }
}
