use super::*;
use crate::common::control_socket::request::parse;
use crate::devices::Built;
use crate::options::Place;

fn operator(descriptions: &[&str], reach: Reach) -> Operator {
    let registry = Registry::standard();
    let device = |text: &&str| {
        let place = Place { socket: "s".into(), description: registry.parse(text).unwrap() };
        Built::build(&registry, place).unwrap().start(1, Duration::ZERO).unwrap()
    };
    let devices = Arc::new(descriptions.iter().map(device).collect());
    Operator::new(registry, devices, Arc::new(Events::new().unwrap()), reach)
}

fn free() -> Reach {
    Reach { sandbox: Switch::Off, allowed: Vec::new() }
}

/// What a client would read.
fn ask(operator: &Operator, request: &str) -> String {
    let reply = operator.serve(parse(request.as_bytes()).unwrap());
    let line = reply.line();
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1, "{line:?}");
    line.trim_end().to_owned()
}

const DISK: &str = "virtio-blk -> swappable -> fault -> memory,size=16M";

#[test]
fn devices_are_listed_and_what_is_below_is_exchanged() {
    let operator = operator(&[DISK, "virtio-net -> stats -> loopback"], free());
    let list: Value = serde_json::from_str(&ask(&operator, r#"{"do":"devices"}"#)).unwrap();
    assert_eq!(list["ok"][0]["stages"], json!(["swappable", "fault", "memory"]));
    assert_eq!(list["ok"][0]["connected"], false);
    assert_eq!(list["ok"][1]["socket"], "s");
    let reply = ask(&operator, r#"{"do":"swap","device":0,"to":"stats -> memory,size=16M"}"#);
    assert_eq!(reply, r#"{"ok":{"pipeline":"virtio-blk -> swappable -> stats -> memory,size=16M"}}"#);
    let stats: Value = serde_json::from_str(&ask(&operator, r#"{"do":"stats"}"#)).unwrap();
    assert_eq!(stats["ok"][0]["stages"][0]["name"], "stats");
    assert_eq!(stats["ok"][0]["queues"][0]["requests"], 0);
}

#[test]
fn devices_pause_and_go_on_one_by_one_or_together() {
    let operator = operator(&[DISK, DISK], free());
    assert_eq!(ask(&operator, r#"{"do":"pause","device":1}"#), r#"{"ok":"paused"}"#);
    assert!(ask(&operator, r#"{"do":"pause","device":1}"#).contains("pauses already"));
    assert!(ask(&operator, r#"{"do":"resume","device":0}"#).contains("does not pause"));
    assert_eq!(ask(&operator, r#"{"do":"pause"}"#), r#"{"ok":"paused"}"#);
    assert_eq!(ask(&operator, r#"{"do":"resume"}"#), r#"{"ok":"running"}"#);
    assert!(ask(&operator, r#"{"do":"resume"}"#).contains("does not pause"));
    let _held = operator.paused.lock().unwrap();
    assert!(ask(&operator, r#"{"do":"pause"}"#).contains(BUSY));
}

#[test]
fn what_cannot_be_done_is_said_in_a_sentence() {
    let operator = operator(&[DISK], free());
    for (request, says) in [
        (r#"{"do":"resize","device":1,"size":"1M"}"#, "there is no device 1; there is device 0 only"),
        (r#"{"do":"resize","device":0,"size":"1M"}"#, "no stage of its pipeline can be resized"),
        (r#"{"do":"pause","device":7}"#, "there is no device 7"),
        (r#"{"do":"swap","device":0,"to":"file,path=/does/not/exist"}"#, "/does/not/exist"),
        (r#"{"do":"set","device":0,"to":"stats"}"#, "device 0 has no stage `stats`"),
        (r#"{"do":"release","device":0,"stage":"memory"}"#, "that holds requests"),
    ] {
        let error: Value = serde_json::from_str(&ask(&operator, request)).unwrap();
        let error = error["error"].as_str().unwrap_or_else(|| panic!("{request} was done"));
        assert!(error.contains(says), "{request}: {error}");
    }
    for wrong in [r#"{"do":"save","path":"x"}"#, r#"{"do":"quit","now":1}"#, "{}"] {
        assert!(parse::<Request>(wrong.as_bytes()).is_err(), "{wrong}");
    }
}

#[test]
fn what_the_sandbox_may_have_refused_is_explained() {
    let refused = || "a.img: Permission denied (os error 13)".to_owned();
    assert_eq!(free().explain(refused()), refused());
    let none = Reach { sandbox: Switch::On, allowed: Vec::new() };
    assert!(
        none.explain(refused())
            .ends_with("open no further file or connection (--allow DIR: files beneath it)")
    );
    assert_eq!(none.explain("no such file".into()), "no such file");
    let some = Reach { sandbox: Switch::On, allowed: vec!["/a".into(), "/b".into()] };
    assert!(some.explain(refused()).ends_with("open nothing but files beneath --allow /a, --allow /b"));
}

#[test]
fn the_end_is_told_to_who_waits() {
    let operator = operator(&[DISK], free());
    let reply = operator.serve(Request::Quit {});
    assert!(matches!(reply.end, Some(Event::Quit)));
    operator.end(Event::Quit);
    assert!(matches!(operator.events.take()[..], [Event::Quit]));
}
