//! libbpf's results: an object opened, relocated or loaded by libbpf.

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CStr, CString};
use std::path::Path;
use std::sync::Mutex;

use libbpf_sys as sys;
use nix::unistd::geteuid;
use xctl::kernel::source::KERNEL_BTF;
use xctl::model::embedded;
use xctl::object::insn::Insn;

use crate::kernels::KERNELS;
use crate::tell;

/// libbpf is told once to be quiet: what it would say about objects that it refuses is expected here.
pub static LIBBPF: Mutex<()> = Mutex::new(());

/// An object opened by libbpf, closed with this.
pub struct Opened(pub *mut sys::bpf_object);

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: it came from bpf_object__open_mem and is closed once.
        unsafe { sys::bpf_object__close(self.0) };
    }
}

impl Opened {
    pub fn programs(&self) -> impl Iterator<Item = *mut sys::bpf_program> {
        // SAFETY: the object is open; libbpf takes null as "before the first" and gives null after the last.
        let next = |previous| unsafe { sys::bpf_object__next_program(self.0, previous) };
        let mut program = next(std::ptr::null_mut());
        std::iter::from_fn(move || {
            let this = program;
            if this.is_null() {
                return None;
            }
            program = next(this);
            Some(this)
        })
    }

    /// A program of this object: its name, and its instructions.
    pub fn code(&self, program: *mut sys::bpf_program) -> (String, Vec<Insn>) {
        // SAFETY: the object is open; libbpf gives as many instructions as it says, which live as long as the object
        // does. They are copied at once.
        let insns = unsafe {
            std::slice::from_raw_parts(
                sys::bpf_program__insns(program).cast::<[u8; 8]>(),
                sys::bpf_program__insn_cnt(program) as usize,
            )
        };
        let insns = insns.iter().map(|bytes| Insn::decode(*bytes, cfg!(target_endian = "big"))).collect();
        (name_of(program), insns)
    }
}

/// No step: the object is only opened.
pub unsafe extern "C" fn nothing_more(_: *mut sys::bpf_object) -> i32 {
    0
}

pub fn name_of(program: *const sys::bpf_program) -> String {
    // SAFETY: the program belongs to an open object, and its name lives as long as that.
    unsafe { CStr::from_ptr(sys::bpf_program__name(program)) }.to_str().unwrap().to_owned()
}

/// What libbpf makes of an object.
pub struct Theirs {
    /// Every program's instructions.
    pub programs: Vec<(String, Vec<Insn>)>,
    /// The maps' descriptors, by name; those of variables by their section's.
    pub maps: BTreeMap<String, i32>,
}

/// Opens an object with libbpf, and hands it to libbpf's next step. Its error, if one of both fails.
pub fn open_and(
    step: unsafe extern "C" fn(*mut sys::bpf_object) -> i32,
    bytes: &[u8],
    btf: &Path,
    loaded: impl Fn(&str) -> bool,
) -> Result<Opened, i32> {
    let _lock = LIBBPF.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: no callback.
    unsafe { sys::libbpf_set_print(None) };
    let path = CString::new(btf.to_str().unwrap()).unwrap();
    let options = sys::bpf_object_open_opts {
        sz: size_of::<sys::bpf_object_open_opts>() as sys::size_t,
        btf_custom_path: path.as_ptr(),
        object_name: c"test".as_ptr(),
        ..Default::default()
    };
    // SAFETY: the bytes and options live through the call, which copies what it needs.
    let object = unsafe { sys::bpf_object__open_mem(bytes.as_ptr().cast(), bytes.len() as sys::size_t, &options) };
    if object.is_null() {
        return Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0));
    }
    let opened = Opened(object);
    for program in opened.programs() {
        // SAFETY: the object is open and not loaded yet.
        unsafe { sys::bpf_program__set_autoload(program, loaded(&name_of(program))) };
    }
    // SAFETY: the object is open and not loaded yet.
    let result = unsafe { step(opened.0) };
    if result == 0 { Ok(opened) } else { Err(result) }
}

/// What libbpf makes of an object, or its error. Programs that `loaded` is false for are not relocated.
pub fn libbpf(bytes: &[u8], btf: &Path, loaded: impl Fn(&str) -> bool) -> Result<Theirs, i32> {
    let opened = open_and(sys::bpf_object__prepare, bytes, btf, loaded)?;
    let mut maps = BTreeMap::new();
    let mut map = std::ptr::null_mut();
    loop {
        // SAFETY: the object is open; libbpf takes null as "before the first" and gives null after the last.
        map = unsafe { sys::bpf_object__next_map(opened.0, map) };
        if map.is_null() {
            break;
        }
        // SAFETY: the map belongs to the object, and its name lives as long as that.
        let (name, fd) = unsafe { (CStr::from_ptr(sys::bpf_map__name(map)), sys::bpf_map__fd(map)) };
        let name = name.to_str().unwrap();
        maps.insert(name.strip_prefix("test").filter(|rest| rest.starts_with('.')).unwrap_or(name).to_owned(), fd);
    }
    Ok(Theirs { programs: opened.programs().map(|program| opened.code(program)).collect(), maps })
}

/// Whether this process may do what libbpf does before it relocates.
pub fn may_prepare() -> bool {
    static MAY: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *MAY.get_or_init(|| {
        let may = Path::new(KERNEL_BTF).exists()
            && libbpf(&embedded::object().unwrap(), Path::new(KERNEL_BTF), |_| true).is_ok();
        if !may {
            let must = env::var_os(KERNELS).is_some() && geteuid().is_root() && Path::new(KERNEL_BTF).exists();
            assert!(!must, "libbpf does not prepare our own object");
            tell(&format!("not compared with libbpf: that needs root and {KERNEL_BTF}"));
        }
        may
    })
}

/// What libbpf makes of each map before it asks the kernel: type, bytes of keys and values, entries, flags, whether it is
/// made.
pub fn maps_by_libbpf(bytes: &[u8], btf: &Path) -> BTreeMap<String, [u64; 6]> {
    let opened = open_and(nothing_more, bytes, btf, |_| true).unwrap();
    let (mut maps, mut map) = (BTreeMap::new(), std::ptr::null_mut());
    loop {
        // SAFETY: the object is open; libbpf takes null as "before the first" and gives null after the last.
        map = unsafe { sys::bpf_object__next_map(opened.0, map) };
        if map.is_null() {
            return maps;
        }
        // SAFETY: the map belongs to the object, and its name lives as long as that.
        let (name, facts) = unsafe {
            let (entries, flags) = (sys::bpf_map__max_entries(map), sys::bpf_map__map_flags(map));
            let (kind, autocreate) = (sys::bpf_map__type(map), u32::from(sys::bpf_map__autocreate(map)));
            let (key, value) = (sys::bpf_map__key_size(map), sys::bpf_map__value_size(map));
            (CStr::from_ptr(sys::bpf_map__name(map)), [kind, key, value, entries, flags, autocreate])
        };
        let name = name.to_str().unwrap();
        let name = name.strip_prefix("test").filter(|rest| rest.starts_with('.')).unwrap_or(name);
        maps.insert(name.to_owned(), facts.map(u64::from));
    }
}
