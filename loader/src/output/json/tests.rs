use super::*;
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
