//! Tests receiving without `SKIP LOCKED`, as on old servers, on a server that has it.

use std::collections::HashSet;
use std::sync::Arc;

use sqlx::{AssertSqlSafe, Executor, MySqlConnection};

use super::super::dialect::Dialect;
use super::super::{Content, Timestamp};
use super::Mysql;
use super::waking::WakeFiles;
use crate::connection::sql::mysql::{MysqlSession, Request, Settings};
use crate::connection::sql::{Address, Fault, Row, Session, live};

const MESSAGES: usize = 200;

/// Repeats a request until it meets no lock of another connection.
async fn perform(session: &mut MysqlSession, request: &Request) -> Vec<Row> {
    loop {
        match session.perform(request).await {
            Err(error) if MysqlSession::fault(&error) == Fault::Busy => {}
            result => return result.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a MySQL or MariaDB server"]
async fn consumers_wait_for_each_other_and_get_no_message_twice() {
    let (variable, usual) = ("MINUTELY_TEST_MYSQL_URL", "mysql://root@127.0.0.1:3306/");
    let mut admin = live::connect::<MySqlConnection>(variable, usual).await;
    let database = format!("minutely_old_{}", std::process::id());
    admin.execute(AssertSqlSafe(format!("CREATE DATABASE {database}"))).await.unwrap();

    let url = std::env::var(variable).unwrap_or_else(|_| usual.to_owned());
    let url = format!("{}/{database}", url.trim_end_matches('/'));
    let settings = Arc::new(Settings::new(&Address::parse(&url)).unwrap());
    let state_dir = tempfile::tempdir().unwrap();
    let queue = || Mysql::new("t", "q", WakeFiles::new(state_dir.path(), &database));
    let mut session = MysqlSession::connect(&settings).await.unwrap();
    perform(&mut session, &queue().set_up()).await;
    let now = Timestamp::now();
    for n in 0..MESSAGES {
        let content = Content { body: n.to_string().into(), headers: "{}".to_owned() };
        perform(&mut session, &queue().send(content, now, now)).await;
    }

    let consumers = (0..4).map(|_| {
        let (settings, queue) = (Arc::clone(&settings), queue());
        tokio::spawn(async move {
            let mut session = MysqlSession::connect(&settings).await.unwrap().without_skip_locked();
            let mut taken = vec![];
            loop {
                let cutoff = now.before(std::time::Duration::from_secs(3600));
                let rows = perform(&mut session, &queue.receive(3, now, cutoff)).await;
                if rows.is_empty() {
                    return taken;
                }
                taken.extend(rows.iter().map(|row| row.number(0).unwrap()));
            }
        })
    });
    let mut all = vec![];
    for consumer in consumers.collect::<Vec<_>>() {
        all.extend(consumer.await.unwrap());
    }
    admin.execute(AssertSqlSafe(format!("DROP DATABASE {database}"))).await.unwrap();
    assert_eq!(all.len(), MESSAGES);
    assert_eq!(all.into_iter().collect::<HashSet<_>>().len(), MESSAGES);
}
