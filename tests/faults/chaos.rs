//! Everything at once, at random: what was accepted is there once, whatever happened, and no replica's bad day is late
//! answers of another.
//!
//! `CHAOS_SECONDS` says for how long (`make chaos` does), `CHAOS_SEED` which schedule; the seed of each run is printed.

use std::{
    env,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    clients::Clients,
    model::{Dice, Reader, check},
    stage::{REPLICAS, Stage, disturb},
    support::{Signal, eventually, ms, s},
};

/// One fault, from its beginning to its end.
async fn fault(stage: &mut Stage, dice: &mut Dice) -> &'static str {
    let number = dice.below(REPLICAS as u64) as usize;
    let pause = ms(200 + dice.below(1800));
    match dice.below(17) {
        0 | 1 => {
            let _bad = stage.blame(Some(number));
            stage.services[number].kill().await;
            stage.replace(number).await;
            "service killed"
        }
        2 => {
            let _bad = stage.blame(Some(number));
            stage.services[number].stop().await;
            stage.replace(number).await;
            "service restarted"
        }
        3 | 4 => {
            let _bad = stage.blame(Some(number));
            stage.services[number].signal(Signal::STOP);
            tokio::time::sleep(pause * 4).await;
            stage.services[number].signal(Signal::CONT);
            "service frozen"
        }
        5 => {
            let _bad = stage.blame(None);
            stage.cluster.kill().await;
            tokio::time::sleep(pause).await;
            stage.cluster.restart().await;
            "database killed"
        }
        6 => {
            let _bad = stage.blame(None);
            stage.cluster.freeze();
            tokio::time::sleep(pause * 2).await;
            stage.cluster.thaw();
            "database frozen"
        }
        7 => {
            let _bad = stage.blame(None);
            disturb(&stage.database, dice, pause).await;
            "database cut off"
        }
        8 => {
            let _bad = stage.blame(None);
            stage.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()").await;
            "connections ended"
        }
        9 => {
            let _bad = stage.blame(None);
            stage.hand_over(pause).await;
            "primary handed over"
        }
        10 | 11 => {
            stage.change_schema(dice).await;
            "schema changed"
        }
        12 => {
            stage.rotate_password(dice, pause).await;
            "password rotated"
        }
        13 => {
            stage.restart_catalog(pause).await;
            "catalog killed"
        }
        14 => {
            stage.catalog.signal(Signal::STOP);
            tokio::time::sleep(pause).await;
            stage.catalog.signal(Signal::CONT);
            "catalog frozen"
        }
        15 => {
            disturb(&stage.peer, dice, pause).await;
            "catalog cut off"
        }
        _ => {
            tokio::time::sleep(pause).await;
            "nothing"
        }
    }
}

/// A number from the environment.
fn given(name: &str) -> Option<u64> {
    let text = env::var(name).ok().filter(|text| !text.is_empty())?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text}")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chaos_loses_no_order_and_delays_no_other_replica() {
    let seed = given("CHAOS_SEED").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| u64::from(now.subsec_nanos()) + now.as_secs())
    });
    let time = s(given("CHAOS_SECONDS").unwrap_or(30));
    println!("CHAOS_SEED={seed}, for {time:?}");
    let Some(mut stage) = Stage::new().await else { return };
    let mut dice = Dice::new(seed);
    let clients = Clients::start(&stage.replicas, &mut dice);
    let reader = Reader::start(&stage.replicas);
    let begun = Instant::now();
    let mut faults = std::collections::BTreeMap::new();
    while begun.elapsed() < time {
        let at = begun.elapsed();
        let fault = fault(&mut stage, &mut dice).await;
        println!("{:7.1} s, for {:4.1} s: {fault}", at.as_secs_f64(), (begun.elapsed() - at).as_secs_f64());
        *faults.entry(fault).or_insert(0) += 1;
        let calm = Instant::now() + ms(100 + dice.below(900));
        while Instant::now() < calm {
            stage.look();
            tokio::time::sleep(ms(20)).await;
        }
    }
    println!("CHAOS_SEED={seed}: {faults:?}");
    for service in &stage.services {
        assert!(service.ended().is_none(), "it ended by itself: {:?}", service.ended());
        service.ready_within(s(30)).await;
    }
    stage.look();
    let (accepted, answers) = clients.stop().await;
    eventually("clients have had orders", s(1), async || !accepted.is_empty()).await;
    check(&stage.cluster, accepted, reader, seed).await;
    stage.spans.judge(&answers, seed);
    for service in &stage.services {
        let exit = service.stop().await;
        assert_eq!(exit.code, Some(0), "after all that it stops in order");
    }
}
