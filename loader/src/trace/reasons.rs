//! The kernel's names for the reasons of drops.

use std::borrow::Cow;

use crate::object::Btf;

/// The names of `enum skb_drop_reason`. Its values differ between kernels, so the names are read from the kernel's BTF.
#[derive(Debug, Default)]
pub struct DropReasons(Vec<(u32, String)>);

impl DropReasons {
    /// Read the names. Kernels before 5.17 have none.
    #[must_use]
    pub fn of(btf: &Btf) -> Self {
        let id = btf.ids().find(|&id| btf.kind(id).is_enum() && btf.name(id) == "skb_drop_reason");
        let name = |name: &str| name.strip_prefix("SKB_DROP_REASON_").unwrap_or(name).to_owned();
        let all = id.into_iter().flat_map(|id| btf.enumerators(id));
        Self(all.filter_map(|one| Some((u32::try_from(one.value).ok()?, name(one.name)))).collect())
    }

    /// The name of a reason. A number without a name, such as one of a module, is the number as text. None: the kernel does not
    /// tell the reason.
    #[must_use]
    pub fn name(&self, reason: u32) -> Option<Cow<'_, str>> {
        let known = self.0.iter().find(|(value, _)| *value == reason).map(|(_, name)| Cow::from(name.as_str()));
        (reason != 0).then(|| known.unwrap_or_else(|| reason.to_string().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::btf::samples::Builder;

    #[test]
    fn reasons_have_the_names_of_the_kernels_enum() {
        let mut builder = Builder::new(false);
        builder.enumeration("other", 4, false, &[("SKB_DROP_REASON_WRONG", 57)]);
        let values = [("SKB_NOT_DROPPED_YET", 0), ("SKB_DROP_REASON_QDISC_DROP", 57), ("SKB_DROP_REASON_MASK", -65536)];
        builder.enumeration("skb_drop_reason", 4, true, &values);
        let reasons = DropReasons::of(&Btf::from_vec(builder.finish()).unwrap());
        assert_eq!(reasons.name(57).as_deref(), Some("QDISC_DROP"));
        assert_eq!(reasons.name(0x1_0003).as_deref(), Some("65539"));
        assert_eq!(reasons.name(0), None);
        assert_eq!(DropReasons::default().name(57).as_deref(), Some("57"));
    }
}
