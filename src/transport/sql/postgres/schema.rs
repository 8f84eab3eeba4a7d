//! The table of a queue in PostgreSQL, with what belongs to it: an index, and a function and trigger that notify
//! consumers.
//!
//! Symfony needs no trigger since 2026. Earlier versions depend on it, and do not add it to an existing table. The index
//! differs from Symfony's: `delivered_at` comes before `available_at`, so that every query is a range of it. Symfony's
//! `messenger:setup-transports` may replace it by its own indexes, which only costs speed.

use super::super::Part;
use super::queries::{TRIGGER, quote};
use crate::connection::sql::{Statement, sql};

/// 1: the table has the index, under whatever name. 2: creating it was interrupted, and left one that is not used.
/// 3: another connection is creating it. Creating and dropping an index beside other statements takes that lock, as
/// does a vacuum, for which to wait is no mistake.
const INDEX_STATE: &str = "\
    SELECT CASE WHEN i.indisvalid THEN 1 WHEN EXISTS (SELECT 1 FROM pg_locks l WHERE l.relation = i.indrelid \
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
    AND l.mode = 'ShareUpdateExclusiveLock' AND l.granted AND l.pid <> pg_backend_pid()) THEN 3 ELSE 2 END \
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
    WHERE i.indrelid = to_regclass($1) AND i.indpred IS NULL AND (i.indisvalid OR c.relname = $2) \
    AND (SELECT string_agg(a.attname::text, ',' ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (number, n) \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number) LIKE 'queue_name,delivered_at,available_at%' \
    ORDER BY i.indisvalid DESC LIMIT 1";

/// 1: the trigger is there, perhaps disabled by somebody. 2: it is not for both INSERT (4) and UPDATE (16), as an early
/// one of Symfony.
const TRIGGER_STATE: &str = "SELECT CASE WHEN tgtype & 20 = 20 THEN 1 ELSE 2 END FROM pg_trigger \
                             WHERE tgrelid = to_regclass($1) AND tgname = 'notify_trigger'";

/// The statements that create the parts of one table.
pub(super) struct Schema {
    name: String,
    /// The quoted name.
    table: String,
    /// The quoted name of the index, without a schema.
    index: String,
    /// With a trigger.
    notify: bool,
}

impl Schema {
    pub(super) fn new(table_name: &str, notify: bool) -> Self {
        let bare = table_name.rsplit('.').next().unwrap_or(table_name);
        let (name, table, index) = (table_name.to_owned(), quote(table_name), quote(&format!("{bare}_due")));
        Self { name, table, index, notify }
    }

    /// All of it, in an empty database.
    pub(super) fn all(&self) -> Vec<String> {
        let mut all = vec![self.create_table(), self.create_index("")];
        if self.notify {
            all.extend([self.create_function(), self.create_trigger()]);
        }
        all
    }

    /// Creates the table, with all that belongs to it, unless it is there. The lock lets one process at a time do so: IF
    /// NOT EXISTS alone fails if two processes create it at the same time.
    pub(super) fn set_up(&self) -> Vec<String> {
        let (name, table) = (&self.name, &self.table);
        let mut statements = vec![
            format!("SELECT pg_advisory_xact_lock(hashtext('minutely setup {name}'))"),
            // The index is only created together with the table: one of the same name may belong to another table.
            format!(
                "DO $$ BEGIN IF to_regclass('{table}') IS NULL THEN {}; {}; END IF; END $$",
                self.create_table(),
                self.create_index("")
            ),
        ];
        if self.notify {
            statements.push(self.create_function());
            statements.push(format!(
                "DO $$ BEGIN IF NOT EXISTS ({}) THEN {}; END IF; END $$",
                TRIGGER.replace("$1", &format!("'{table}'")),
                self.create_trigger()
            ));
        }
        statements
    }

    /// What an existing table may lack. The index is created beside other statements, which takes longer, and cannot be in
    /// a transaction.
    pub(super) fn parts(&self) -> Vec<Part> {
        let index = self.index.trim_matches('"');
        let schema = self.name.rsplit_once('.').map_or_else(String::new, |(schema, _)| quote(schema) + ".");
        let create = vec![self.create_index("CONCURRENTLY ")];
        let drop = vec![format!("DROP INDEX CONCURRENTLY IF EXISTS {schema}{}", self.index)];
        // PostgreSQL cuts longer names.
        let cut = &index[..index.len().min(63)];
        let mut parts = vec![Part {
            name: format!("index \"{index}\""),
            state: Statement::of(&sql(INDEX_STATE)).bind(self.table.as_str()).bind(cut),
            replace: vec![drop, create.clone()],
            create: vec![create],
        }];
        if self.notify {
            let drop = format!("DROP TRIGGER notify_trigger ON {}", self.table);
            parts.push(Part {
                name: format!("trigger \"notify_trigger\" of {}", self.table),
                state: Statement::of(&sql(TRIGGER_STATE)).bind(self.table.as_str()),
                create: vec![vec![self.create_function(), self.create_trigger()]],
                replace: vec![vec![self.create_function(), drop, self.create_trigger()]],
            });
        }
        parts
    }

    fn create_table(&self) -> String {
        format!(
            "CREATE TABLE {} (id BIGSERIAL NOT NULL PRIMARY KEY, body TEXT NOT NULL, headers TEXT NOT NULL, \
             queue_name VARCHAR(190) NOT NULL, created_at TIMESTAMP(0) WITHOUT TIME ZONE NOT NULL, \
             available_at TIMESTAMP(0) WITHOUT TIME ZONE NOT NULL, \
             delivered_at TIMESTAMP(0) WITHOUT TIME ZONE DEFAULT NULL)",
            self.table
        )
    }

    fn create_index(&self, how: &str) -> String {
        format!("CREATE INDEX {how}{} ON {} (queue_name, delivered_at, available_at, id)", self.index, self.table)
    }

    fn function(&self) -> String {
        match self.name.rsplit_once('.') {
            Some((schema, bare)) => quote(&format!("{schema}.notify_{bare}")),
            None => quote(&format!("notify_{}", self.name)),
        }
    }

    fn create_function(&self) -> String {
        format!(
            "CREATE OR REPLACE FUNCTION {}() RETURNS TRIGGER AS $$\n    BEGIN\n        \
             PERFORM pg_notify('{}', NEW.queue_name::text);\n        RETURN NEW;\n    END;\n\
             $$ LANGUAGE plpgsql",
            self.function(),
            self.name
        )
    }

    fn create_trigger(&self) -> String {
        format!(
            "CREATE TRIGGER notify_trigger AFTER INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE PROCEDURE {}()",
            self.table,
            self.function()
        )
    }
}
