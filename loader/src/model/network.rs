//! Networks of IP addresses, for the filter by address.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use super::mirror::{Field, Mirror, Plain, mirror, plain_arrays};

mirror! {
    /// A network of IP addresses: those whose bits under `mask` are the bits of `first`. An IPv4 address is kept as IPv6 writes
    /// it, `::ffff:a.b.c.d`.
    "network" Network {
        /// The first address, network order.
        first: [u8; 16],
        /// The mask.
        mask: [u8; 16],
        /// 4 or 6; 0: no network. A network of IPv6 has no address of IPv4.
        family: u64,
    }
}
plain_arrays!(Network);

impl Network {
    /// Whether the network has this address. An IPv4-mapped address counts as its IPv4 address.
    #[must_use]
    pub fn contains(&self, address: [u8; 16]) -> bool {
        let family = if Ipv6Addr::from(address).to_canonical().is_ipv4() { 4 } else { 6 };
        self.family == family && bits(address) & bits(self.mask) == bits(self.first)
    }
}

fn bits(bytes: [u8; 16]) -> u128 {
    u128::from_be_bytes(bytes)
}

impl FromStr for Network {
    type Err = String;

    /// Read an address or a network, such as `192.0.2.1`, `10.0.0.0/8` or `2001:db8::/32`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "neither an IP address nor a network such as 10.0.0.0/8 or 2001:db8::/32".to_owned();
        let (address, length) = text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let (octets, width) = match address {
            IpAddr::V4(address) => (address.to_ipv6_mapped().octets(), 32),
            IpAddr::V6(address) => (address.octets(), 128),
        };
        let length: u32 = length.map_or(Ok(width), str::parse).map_err(|_| wrong())?;
        let Some(free) = width.checked_sub(length) else {
            return Err(format!(
                "the prefix of an IPv{} network has at most {width} bits",
                if width == 32 { 4 } else { 6 }
            ));
        };
        let mask = u128::MAX.checked_shl(free).unwrap_or(0);
        let first = bits(octets) & mask;
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8
        let is_ipv4 = Ipv6Addr::from(first).to_canonical().is_ipv4() && free <= 32;
        Ok(Self { first: first.to_be_bytes(), mask: mask.to_be_bytes(), family: if is_ipv4 { 4 } else { 6 } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(network: &str, address: &str) -> bool {
        let octets = match address.parse().unwrap() {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        network.parse::<Network>().unwrap().contains(octets)
    }

    #[test]
    fn a_network_has_the_addresses_of_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.0"),
            ("10.1.2.3/8", "10.0.0.0", "9.255.255.255"), // bits behind the prefix do not count
            ("192.0.2.1", "192.0.2.1", "192.0.2.0"),
            ("192.0.2.0/31", "192.0.2.1", "192.0.2.2"),
            ("0.0.0.0/0", "255.1.1.1", "::1"),
            ("::/0", "2001:db8::1", "10.0.0.1"),
            ("2001:db8::/32", "2001:db8:ffff::", "2001:db9::"),
            ("fe80::1/128", "fe80::1", "fe80::2"),
            ("::ffff:10.0.0.0/104", "10.9.9.9", "11.0.0.1"),
            ("::ffff:10.0.0.1", "10.0.0.1", "10.0.0.2"),
        ] {
            assert!(has(network, inside), "{inside} in {network}");
            assert!(!has(network, outside), "{outside} in {network}");
        }
    }

    #[test]
    fn other_text_is_refused() {
        for wrong in
            ["", "10", "10.0.0.0/", "10.0.0.0/33", "::/129", "10.0.0.0/-1", "host", "10.0.0.0/8/8", "fe80::1%eth0"]
        {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }
}
