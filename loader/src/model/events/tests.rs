use super::*;

#[test]
fn addresses_are_written_in_their_own_family() {
    let mapped: Ipv6Addr = "::ffff:192.0.2.1".parse().unwrap();
    assert_eq!(address(mapped.octets()).to_string(), "192.0.2.1");
    let v6: Ipv6Addr = "2001:db8::1".parse().unwrap();
    assert_eq!(address(v6.octets()).to_string(), "2001:db8::1");
}

#[test]
fn a_name_may_hold_anything() {
    assert_eq!(comm(b"nginx\0xxxxxxxxxx"), "nginx");
    assert_eq!(comm(b"\xff\xfe\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "\u{fffd}\u{fffd}");
    assert_eq!(comm(&[b'a'; 16]).len(), 16);
}
