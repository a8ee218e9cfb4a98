//! SIGHUP: the settings are read again, and nothing ends.

use crate::support::{Signal, World, always, eventually, ms, s};

#[tokio::test]
async fn sighup_ends_nothing_and_says_which_setting_changed() {
    let world = World::new().await;
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let write = |text: &str| std::fs::write(file.path(), text).expect("it can be written");
    write("[http]\nmax_in_flight = 100\n");
    let service = world.service().env("APP_CONFIG", file.path().display()).ready().await;
    write("[http]\nmax_in_flight = 200\n");
    service.signal(Signal::HUP);
    let changed = async || service.logged("setting has changed").pop();
    let changed = eventually("the change is named", s(5), changed).await;
    assert_eq!(changed["setting"], "http.max_in_flight");
    assert_eq!((&changed["from"], &changed["to"]), (&"100".into(), &"200".into()));
    write("[http]\nmax_in_flight = -1\n");
    service.signal(Signal::HUP);
    let refused = async || service.logged("settings are not read again").pop();
    let refused = eventually("what is wrong is named", s(5), refused).await;
    assert!(refused["error"].to_string().contains("http.max_in_flight"), "{refused}");
    always("it serves", ms(300), async || service.get("/openapi.json").await.status == 200).await;
    assert_eq!(service.phases(), ["starting", "ready"]);
    assert_eq!(service.stop().await.code, Some(0));
}
