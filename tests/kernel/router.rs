//! A client and a server with a router between them, over IPv4. Each is a network namespace, removed when dropped.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use crate::link::{self, Netns};

/// The wire from the client to the router. The device has the same name at both ends.
const NEAR: &str = "veth0";
/// The wire from the router to the server.
const FAR: &str = "veth1";
pub const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 98, 2, 2));

pub struct Routed {
    pub client: Netns,
    router: Netns,
    pub server: Netns,
}

impl Routed {
    pub fn up() -> Result<Routed> {
        let routed =
            Routed { client: Netns::new("client")?, router: Netns::new("router")?, server: Netns::new("server")? };
        let Routed { client, router, server } = &routed;
        for (device, end) in [(NEAR, client), (FAR, server)] {
            router.wire(device, end)?;
        }
        for (ns, device, address) in [
            (client, NEAR, "10.98.1.2"),
            (router, NEAR, "10.98.1.1"),
            (router, FAR, "10.98.2.1"),
            (server, FAR, "10.98.2.2"),
        ] {
            ns.ip(&format!("link set lo up\nlink set {device} up\naddr add {address}/24 dev {device}\n"))?;
        }
        client.ip("route add default via 10.98.1.1\n")?;
        server.ip(DEFAULT_ROUTE)?;
        router.set("ip_forward", "1")?;
        // the router sends an ICMP message for each packet, without a rate limit
        router.set("icmp_ratelimit", "0")?;
        Ok(routed)
    }

    /// Loses `percent` of the packets to the server from now on. The router still answers packets that are too big for the
    /// wire.
    pub fn lose(&self, percent: u8) -> Result<()> {
        link::lose_on(FAR, &self.router, &self.server, percent)
    }

    /// From now on the router sends no packet longer than `bytes` to the server. The server still asks for segments of the
    /// old size.
    pub fn narrow(&self, bytes: u32) -> Result<()> {
        self.router.ip(&format!("link set {FAR} mtu {bytes}\n"))
    }

    /// Takes the server's wire down. Some seconds after each packet, the router finds that it cannot reach the server.
    pub fn unplug(&self) -> Result<()> {
        self.server.ip(&format!("link set {FAR} down\n"))
    }

    pub fn plug_in(&self) -> Result<()> {
        self.server.ip(&format!("link set {FAR} up\n{DEFAULT_ROUTE}"))
    }

    pub fn quiet(&self) -> Result<()> {
        link::quiet(&[&self.client, &self.server])
    }
}

const DEFAULT_ROUTE: &str = "route add default via 10.98.2.1\n";
