//! What a view is.

use crate::tables::Table;

/// A view of a session.
#[derive(Debug, Clone, Copy)]
pub struct View {
    /// Its name.
    pub name: &'static str,
    /// What it shows.
    pub doc: &'static str,
    /// The query behind it.
    pub sql: &'static str,
    /// A table that may be missing; without it, there is no such view.
    pub needs: Option<Table>,
}
