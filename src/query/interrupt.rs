//! Plans that can be stopped inside their joins.
//!
//! The engine's operators yield where they read files. A join can compute for minutes on rows that it has already: it goes on
//! to the next row of its left side until a batch of results is full. [`interruptible`] makes joins yield to the scheduler of
//! tasks, and puts a question before the condition of a nested-loop join, which is asked for every row of its left side.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::{FieldRef, Schema};
use datafusion::common::tree_node::{Transformed, TransformedResult as _, TreeNode as _};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    CrossJoinExec, HashJoinExec, NestedLoopJoinExec, NestedLoopJoinExecBuilder, SortMergeJoinExec,
};

/// The plan, with joins that end soon after `stop` is set and the task is aborted.
///
/// # Errors
/// The engine refuses the plan.
pub(super) fn interruptible(plan: Arc<dyn ExecutionPlan>, stop: &Arc<AtomicBool>) -> Result<Arc<dyn ExecutionPlan>> {
    plan.transform_up(|node| {
        let node: Arc<dyn ExecutionPlan> = match node.downcast_ref::<NestedLoopJoinExec>() {
            Some(join) => Arc::new(asking(join, stop)?),
            None if node.is::<HashJoinExec>() || node.is::<CrossJoinExec>() || node.is::<SortMergeJoinExec>() => node,
            None => return Ok(Transformed::no(node)),
        };
        Ok(Transformed::yes(Arc::new(CooperativeExec::new(node))))
    })
    .data()
}

/// The join, whose condition first asks whether to go on.
fn asking(join: &NestedLoopJoinExec, stop: &Arc<AtomicBool>) -> Result<NestedLoopJoinExec> {
    let filter = join.filter().map(|filter| {
        let condition = Condition { inner: Arc::clone(filter.expression()), stop: Arc::clone(stop) };
        JoinFilter::new(Arc::new(condition), filter.column_indices().to_vec(), Arc::clone(filter.schema()))
    });
    NestedLoopJoinExecBuilder::from(join).with_filter(filter).build()
}

/// A condition that fails once its statement is stopped.
#[derive(Debug)]
struct Condition {
    inner: Arc<dyn PhysicalExpr>,
    stop: Arc<AtomicBool>,
}

impl PartialEq for Condition {
    fn eq(&self, other: &Self) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for Condition {}

impl Hash for Condition {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PhysicalExpr for Condition {
    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(DataFusionError::Execution("the statement was stopped".into()));
        }
        self.inner.evaluate(batch)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        let inner = children.into_iter().next().unwrap_or_else(|| Arc::clone(&self.inner));
        Ok(Arc::new(Self { inner, stop: Arc::clone(&self.stop) }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use datafusion::physical_plan::displayable;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::super::engine::{self, Engine};
    use super::*;

    /// 10^12 pairs of rows, of which none is equal.
    const ENDLESS: &str = "SELECT count(*) FROM generate_series(1, 1000000) a(i)
        JOIN generate_series(1, 1000000) b(j) ON a.i * 2 + b.j < 0";

    fn session(timeout: Option<Duration>) -> SessionContext {
        let engine = Engine::new(Some(256), timeout);
        SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2).with_extension(engine))
    }

    #[tokio::test]
    async fn a_nested_loop_join_ends_within_its_time_and_the_next_statement_is_answered() {
        let context = session(Some(Duration::from_millis(300)));
        let started = Instant::now();
        let mut rows = engine::rows(&context, context.sql(ENDLESS).await.unwrap()).await.unwrap();
        let error = futures::StreamExt::next(&mut rows).await.unwrap().unwrap_err().to_string();
        assert!(error.contains("within 0.3 s, the limit of --timeout"), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        let rows = engine::rows(&context, context.sql("SELECT 1").await.unwrap()).await.unwrap();
        assert_eq!(futures::TryStreamExt::try_collect::<Vec<_>>(rows).await.unwrap()[0].num_rows(), 1);
    }

    #[tokio::test]
    async fn a_statement_whose_rows_are_dropped_ends_by_itself() {
        let context = session(None);
        let mut took = Vec::new();
        // On a busy machine the task may get no turn within the time.
        for _ in 0..5 {
            let rows = engine::rows(&context, context.sql(ENDLESS).await.unwrap()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(200)).await;
            let started = Instant::now();
            drop(rows);
            // Where the join did not end, this would wait for as long as it may.
            engine::settle(&context).await;
            took.push(started.elapsed());
        }
        assert!(took.iter().any(|time| *time < engine::GRACE), "{took:?}");
    }

    #[tokio::test]
    async fn too_little_memory_is_an_error_that_names_the_limit() {
        let engine = Engine::new(Some(64), None);
        let runtime = engine.within_memory(Default::default()).build_arc().unwrap();
        let config = SessionConfig::new().with_extension(engine);
        let context = SessionContext::new_with_config_rt(config, runtime);
        let sql = "SELECT count(*) FROM generate_series(1, 20000000) a(i) JOIN generate_series(1, 20000000) b(j) ON a.i = b.j";
        let rows = engine::rows(&context, context.sql(sql).await.unwrap()).await.unwrap();
        let error = futures::TryStreamExt::try_collect::<Vec<_>>(rows).await.unwrap_err().to_string();
        assert!(error.contains("limit of 64 MiB") && error.contains("--memory-mib"), "{error}");
    }

    #[tokio::test]
    async fn only_joins_are_changed_and_their_conditions_look_the_same() {
        let context = SessionContext::new();
        let shown = async |sql: &str| {
            let plan = context.sql(sql).await.unwrap().create_physical_plan().await.unwrap();
            let text = |plan: &Arc<dyn ExecutionPlan>| displayable(plan.as_ref()).indent(true).to_string();
            (text(&plan), text(&interruptible(plan, &Arc::default()).unwrap()))
        };
        let (before, after) = shown("SELECT i FROM generate_series(1, 3) a(i) WHERE i > 1 ORDER BY i").await;
        assert_eq!(before, after);
        let (before, after) = shown(ENDLESS).await;
        let condition = |text: &str| text.lines().find(|l| l.contains("NestedLoopJoin")).unwrap().trim().to_owned();
        assert_eq!(condition(&before), condition(&after));
        assert!(after.contains("CooperativeExec"), "{after}");
    }
}
