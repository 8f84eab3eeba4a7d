//! Databases: messages move between tables, too.

use minutely::transport::Counts;

use super::stage::{Kind, Stage, ids, message, message_of, send};

async fn a_message_moves_to_another_table_in_one_step(kind: Kind) {
    let Some(stage) = Stage::new(kind).await else { return };
    let (source, destination) = (stage.open("a"), stage.open_with("b", "{table_name: other}"));
    let moving = source.moving.clone().unwrap();
    let place = destination.moving.as_ref().unwrap().place();
    // While the other table is missing, the message stays, and the caller has to send it.
    send(&source, "as sent").await;
    let received = source.receive(1).await.unwrap();
    assert_eq!(moving.move_to(&received[0].id, &message("{}"), &place).await.unwrap(), None);
    destination.setting_up.as_ref().unwrap().setup().await.unwrap();
    let id = moving.move_to(&received[0].id, &message("as moved"), &place).await.unwrap();
    assert_eq!(source.counting.as_ref().unwrap().counts(9).await.unwrap(), Counts::default());
    let moved = destination.receive(10).await.unwrap();
    assert_eq!(ids(&moved), [id.unwrap()]);
    assert_eq!(message_of(&moved[0]), &message("as moved"));
}

mod sqlite {
    #[test]
    async fn a_message_moves_to_another_table_in_one_step() {
        super::a_message_moves_to_another_table_in_one_step(super::Kind::Sqlite).await;
    }
}

mod postgres {
    #[test]
    async fn a_message_moves_to_another_table_in_one_step() {
        super::a_message_moves_to_another_table_in_one_step(super::Kind::Postgres).await;
    }
}

mod mysql {
    #[test]
    async fn a_message_moves_to_another_table_in_one_step() {
        super::a_message_moves_to_another_table_in_one_step(super::Kind::Mysql).await;
    }
}
