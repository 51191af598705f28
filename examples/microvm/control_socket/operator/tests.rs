use std::thread;

use iovirt::core::dma::DmaSpace;
use iovirt::core::irq::EventFdInterrupt;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::common::control_socket::request::parse;

fn operator(descriptions: &[&str]) -> Operator {
    let registry = Arc::new(Registry::standard());
    let memory: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let space = DmaSpace::from_guest_memory(&memory).unwrap();
    let device = |text: &&str| {
        let interrupt = Arc::new(EventFdInterrupt::new().unwrap());
        Device::new(&registry, registry.parse(text).unwrap(), &space, interrupt).unwrap()
    };
    let devices = Arc::new(descriptions.iter().map(device).collect());
    Operator::new(registry, devices, Arc::new(Control::new().unwrap()), None)
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
fn devices_and_their_stages_are_listed_and_exchanged() {
    let operator = operator(&[DISK, "virtio-blk -> mirror [memory,size=1M | swappable -> memory,size=1M]"]);
    let list: Value = serde_json::from_str(&ask(&operator, r#"{"do":"devices"}"#)).unwrap();
    assert_eq!(list["ok"][0]["stages"], json!(["swappable", "fault", "memory"]));
    assert_eq!(list["ok"][0]["pipeline"], DISK);

    let reply = ask(&operator, r#"{"do":"swap","device":0,"to":"stats -> memory,size=16M"}"#);
    assert_eq!(reply, r#"{"ok":{"pipeline":"virtio-blk -> swappable -> stats -> memory,size=16M"}}"#);
    let reply = ask(&operator, r#"{"do":"swap","device":1,"to":"null,size=1M"}"#);
    assert!(reply.contains("mirror [memory,size=1M | swappable -> null,size=1M]"), "{reply}");
    let list = ask(&operator, r#"{"do":"devices"}"#);
    assert!(list.contains(r#"["swappable","stats","memory"]"#), "{list}");
}

#[test]
fn a_stack_is_taken_away_and_another_put_in_its_place() {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(1 << 20).unwrap();
    let path = image.path().display();
    let disk = format!("virtio-blk -> swappable -> file,path={path}");
    let operator = operator(&[&disk, "virtio-net -> swappable -> loopback"]);
    for device in 0..2 {
        let reply = ask(&operator, &format!(r#"{{"do":"remove","device":{device}}}"#));
        assert!(reply.contains("swappable -> vacant"), "{reply}");
        assert!(operator.devices[device].has_vacancy());
        let reply = ask(&operator, &format!(r#"{{"do":"remove","device":{device}}}"#));
        assert!(reply.contains("the place is vacant"), "{reply}");
    }
    let list = ask(&operator, r#"{"do":"devices"}"#);
    assert_eq!(list.matches(r#""stages":["swappable","vacant"]"#).count(), 2, "{list}");
    assert!(ask(&operator, r#"{"do":"resize","device":0,"size":"2M"}"#).contains("can be resized"));
    assert!(ask(&operator, r#"{"do":"swap","device":0,"to":"null"}"#).contains("the place is vacant"));
    assert!(
        ask(&operator, r#"{"do":"add","device":0,"to":"memory,size=4K"}"#).contains("fewer than 1048576")
    );
    assert!(ask(&operator, r#"{"do":"add","device":1,"to":"loopback,mtu=9000"}"#).contains("not 1500"));
    // The file is free: it can be opened again at once.
    let reply = ask(&operator, &format!(r#"{{"do":"add","device":0,"to":"stats -> file,path={path}"}}"#));
    assert!(reply.contains(&format!("swappable -> stats -> file,path={path}")), "{reply}");
    assert!(ask(&operator, r#"{"do":"add","device":1,"to":"loopback"}"#).contains("swappable -> loopback"));
    assert!(!operator.devices.iter().any(Device::has_vacancy));
}

#[test]
fn what_cannot_be_done_is_said_in_a_sentence() {
    let operator = operator(&[DISK]);
    for (request, says) in [
        (r#"{"do":"resize","device":1,"size":"1M"}"#, "there is no device 1; there is device 0 only"),
        (r#"{"do":"resize","device":0,"size":"1M"}"#, "no stage of its pipeline can be resized"),
        (r#"{"do":"swap","device":0,"to":"memory,size=1M"}"#, "1048576"),
        (r#"{"do":"swap","device":0,"to":"memory,sise=1M"}"#, "did you mean `size`?"),
        (r#"{"do":"swap","device":0,"to":"file,path=/does/not/exist"}"#, "/does/not/exist"),
        (r#"{"do":"swap","device":0,"stage":"fault","to":"null"}"#, "`fault` of device 0 is no such place"),
        (r#"{"do":"swap","device":0,"stage":"x","to":"null"}"#, "device 0 has no stage `x`"),
        (r#"{"do":"add","device":0,"to":"null"}"#, "there is a stack in the place"),
        (r#"{"do":"add","device":0,"to":"null,->"}"#, "column"),
        (r#"{"do":"remove","device":0,"stage":"mirror"}"#, "device 0 has no stage `mirror`"),
        (r#"{"do":"remove","device":0,"stage":"memory"}"#, "`memory` of device 0 is no such place"),
        (r#"{"do":"set","device":0,"to":"fault,every=many"}"#, "every"),
        (r#"{"do":"set","device":0,"to":"memory,size=1M"}"#, "`memory` cannot be changed while it runs"),
        (r#"{"do":"set","device":0,"to":"stats"}"#, "device 0 has no stage `stats`"),
        (r#"{"do":"release","device":0,"stage":"memory"}"#, "that holds requests"),
        (r#"{"do":"resume"}"#, "the machine does not pause"),
        (r#"{"do":"save","path":"x"}"#, "there is no guest"),
    ] {
        let reply = ask(&operator, request);
        assert!(reply.starts_with(r#"{"error":""#), "{request}: {reply}");
        let error: Value = serde_json::from_str(&reply).unwrap();
        assert!(error["error"].as_str().unwrap().contains(says), "{request}: {reply}");
    }
}

#[test]
fn a_machine_pauses_and_goes_on() {
    let operator = Arc::new(operator(&[DISK]));
    assert_eq!(
        ask(&operator, r#"{"do":"set","device":0,"to":"fault,every=3"}"#),
        r#"{"ok":"fault,every=3"}"#
    );
    let vcpu = {
        let operator = operator.clone();
        thread::spawn(move || {
            let control = &operator.control;
            let seat = control.gate.enter(0);
            while !control.stopping() {
                if control.gate.is_closed() {
                    seat.wait(|| control.stopping(), || Ok(Vec::new()));
                }
            }
        })
    };
    vcpu::install_kick_handler().unwrap();
    assert_eq!(ask(&operator, r#"{"do":"pause"}"#), r#"{"ok":"paused"}"#);
    assert!(ask(&operator, r#"{"do":"pause"}"#).contains("pauses already"));
    // What changes nothing of the machine's course is still done.
    assert!(ask(&operator, r#"{"do":"stats"}"#).contains(r#"{"stage":"fault","state":{"#));
    assert_eq!(ask(&operator, r#"{"do":"resume"}"#), r#"{"ok":"running"}"#);
    let reply = operator.serve(Request::Quit {});
    assert_eq!(reply.end, Some(Stop::Told));
    operator.end(Stop::Told);
    vcpu.join().unwrap();
}

#[test]
fn one_thing_at_a_time() {
    let operator = operator(&[DISK]);
    let _held = operator.paused.lock().unwrap();
    assert!(ask(&operator, r#"{"do":"pause"}"#).contains(BUSY));
    assert!(ask(&operator, r#"{"do":"devices"}"#).contains(DISK));
}
