use super::*;
use crate::ledger::group::{By, Group};
use crate::model::events::ProcessKey;
use serde_json::Value;
use std::net::Ipv6Addr;

fn printed(event: &Retransmit, exited: bool) -> Value {
    let mut json = Json::new(Vec::new());
    json.retransmit(event, Moment { realtime_ns: 1_700_000_000_123_456_789, exited, ..Moment::default() }).unwrap();
    assert_eq!(json.out.iter().filter(|&&byte| byte == b'\n').count(), 1);
    serde_json::from_slice(&json.out).unwrap()
}

fn event() -> Retransmit {
    let mut event = Retransmit::default();
    event.flow.saddr = "::ffff:10.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
    event.flow.daddr = "::ffff:10.0.0.2".parse::<Ipv6Addr>().unwrap().octets();
    (event.flow.sport, event.flow.dport, event.flow.netns) = (40000, 443, 4_026_531_840);
    event.owner.comm = *b"a\"\\\n\xff\0\0\0\0\0\0\0\0\0\0\0";
    (event.owner.tgid, event.owner.tid, event.owner.how) = (42, 43, How::Send as u8);
    (event.kind, event.state, event.segs, event.mss) = (Kind::Tlp as u8, 1, 3, 1448);
    event
}

#[test]
fn any_name_is_valid_json() {
    let value = printed(&event(), false);
    assert_eq!(value["comm"], "a\"\\\n\u{fffd}");
    assert_eq!(value["time"], "2023-11-14T22:13:20.123456789Z");
    assert_eq!((&value["saddr"], &value["family"]), (&"10.0.0.1".into(), &"ipv4".into()));
    assert_eq!((&value["kind"], &value["state"]), (&"tlp".into(), &"ESTABLISHED".into()));
    assert_eq!((&value["pid"], &value["tid"], &value["mss"]), (&42.into(), &43.into(), &1448.into()));
}

#[test]
fn unknown_values_and_measures_of_syn_acks_are_null() {
    let mut event = event();
    event.owner = Owner::default();
    event.kind = Kind::Synack as u8;
    let value = printed(&event, false);
    for field in ["pid", "comm", "tid", "uid", "cgroup", "srtt_us", "cwnd", "ssthresh", "mss"] {
        assert_eq!(value[field], Value::Null, "{field}");
    }
    assert_eq!(value["owner"], "unknown");
}

#[test]
fn a_row_that_stands_for_no_process_has_the_fields_of_its_kind_and_the_schema_knows_them() {
    let schema: Value = serde_json::from_str(crate::output::SCHEMA).unwrap();
    let known = schema["$defs"]["group"]["properties"].as_object().unwrap();
    let required = schema["$defs"]["group"]["required"].as_array().unwrap();
    let (key, flow) = (ProcessKey::of(&event().owner), event().flow);
    let of = |by, group| {
        let row = Process {
            group,
            pid: Some(42),
            cgroup: Some(7),
            others: group.is_none().then_some(3),
            ..Process::default()
        };
        let summary = Summary { processes: vec![row], ..Summary::default() };
        let mut json = Json::new(Vec::new());
        json.interval(&Interval { realtime_ns: 0, mono_ns: 1, took_us: 2, by, several_netns: false, summary }).unwrap();
        let group: Value = serde_json::from_slice(json.out.split(|byte| *byte == b'\n').nth(1).unwrap()).unwrap();
        let fields = group.as_object().unwrap();
        assert!(fields.keys().all(|field| known.contains_key(field)), "{group}");
        assert!(required.iter().all(|field| fields.contains_key(field.as_str().unwrap())), "{group}");
        group
    };
    let has = |group: &Value| ["daddr", "pid", "remote", "cgroup"].map(|field| !group[field].is_null());
    let connection = of(By::Connection, Some(Group::Connection(flow, key)));
    assert_eq!((has(&connection), &connection["dport"]), ([true, true, false, true], &443.into()));
    let remote = of(By::Remote, Some(Group::Remote(flow.daddr)));
    assert_eq!((has(&remote), &remote["remote"]), ([false, false, true, false], &"10.0.0.2".into()));
    assert_eq!(has(&of(By::Cgroup, Some(Group::Cgroup(7)))), [false, false, false, true]);
    let others = of(By::Remote, None);
    assert_eq!((has(&others), &others["others"]), ([false; 4], &3.into()));
}
