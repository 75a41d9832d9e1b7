use super::*;
use crate::object::insn::LEFT_OUT;

const fn insn(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Insn {
    Insn { code, dst, src, off, imm }
}

const EXIT_: Insn = insn(EXIT, 0, 0, 0, 0);

/// A program with every kind of instruction, and its translation by a kernel. The map behind descriptor 7 has id 70.
fn pair() -> (Vec<Insn>, Vec<Insn>) {
    let program = vec![
        insn(0xbf, 6, 1, 0, 0),             // 0: r6 = r1
        insn(0x18, 1, PSEUDO_MAP_FD, 0, 7), // 1: r1 = map
        Insn::EMPTY,
        insn(CALL, 0, 0, 0, 1),                // 3: lookup
        insn(0x15, 0, 0, 6, 0),                // 4: if r0 == 0 goto 11
        insn(0x79, 7, 0, 8, 0),                // 5: r7 = *(u64 *)(r0 + 8)
        insn(0x55, 7, 0, 1, 3),                // 6: if r7 != 3 goto 8: always
        insn(0xb7, 7, 0, 0, 9),                // 7: r7 = 9
        insn(0x3f, 7, 6, 0, 0),                // 8: r7 /= r6
        insn(0x15, 7, 0, 3, 5),                // 9: if r7 == 5 goto 13: never
        insn(CALL, 0, 0, 0, 14),               // 10: get_current_pid_tgid
        insn(0x55, 7, 0, -7, 1),               // 11: if r7 != 1 goto 5
        insn(0x05, 0, 0, 1, 0),                // 12: goto 14
        insn(0xb7, 8, 0, 0, 1),                // 13: r8 = 1
        insn(0xb7, 0, 0, 0, 0),                // 14: r0 = 0
        insn(0x18, 2, PSEUDO_MAP_VALUE, 0, 7), // 15: r2 = a place in a map
        insn(0, 0, 0, 0, 24),
        insn(0x63, 2, 0, 4, 0), // 17: *(u32 *)(r2 + 4) = r0
        EXIT_,
    ];
    let translated = vec![
        insn(0xbf, 6, 1, 0, 0),              // 0
        insn(0x18, 1, PSEUDO_MAP_FD, 0, 70), // 1
        Insn::EMPTY,
        insn(CALL, 0, 0, 0, 330_864), // 3: inlined
        insn(0x15, 0, 0, 1, 0),
        insn(0x07, 0, 0, 0, 56),
        insn(0x15, 0, 0, 6, 0), // 6: if r0 == 0 goto 13
        insn(0x79, 7, 0, 8, 0), // 7
        insn(0x55, 6, 0, 2, 0), // 8: guarded
        insn(0xac, 7, 7, 0, 0),
        insn(0x05, 0, 0, 1, 0),
        insn(0x3f, 7, 6, 0, 0),
        insn(CALL, 0, 0, 0, 1000), // 12
        insn(0x55, 7, 0, -7, 1),   // 13: goto 7
        insn(0xb7, 0, 0, 0, 0),    // 14
        insn(0x18, 2, PSEUDO_MAP_VALUE, 0, 70),
        insn(0, 0, 0, 0, 24),
        insn(0x63, 2, 0, 4, 0),
        EXIT_,
    ];
    (program, translated)
}

fn compared(program: &[Insn], translated: &[Insn]) -> Result<Translation, Unexplained> {
    compare(program, translated, |fd| (fd == 7).then_some(70))
}

#[test]
fn rewrites_of_the_verifier_are_explained() {
    let (program, translated) = pair();
    let found = compared(&program, &translated).unwrap();
    assert_eq!(found, Translation { same: 11, rewritten: 8, dropped: 5 });
    // Not every kernel makes these changes.
    let id = |insn: &Insn| if insn.code == 0x18 { Insn { imm: 70, ..*insn } } else { *insn };
    let plain: Vec<Insn> = program.iter().map(id).collect();
    assert_eq!(compared(&program, &plain).unwrap(), Translation { same: 17, rewritten: 2, dropped: 0 });
}

#[test]
fn other_rewrites_are_not_explained() {
    let (program, translated) = pair();
    let inlined = 3..6;
    let guard = 8..12;
    for at in 0..translated.len() {
        let good = translated[at];
        for bad in [
            Insn { imm: good.imm ^ 2, ..good },
            Insn { off: good.off ^ 2, ..good },
            Insn { dst: good.dst ^ 8, ..good },
            Insn { src: good.src ^ 4, ..good },
            Insn { code: good.code ^ 0x40, ..good },
        ] {
            let mut altered = translated.clone();
            altered[at] = bad;
            let found = compared(&program, &altered);
            // The comparison leaves out the kernel function that a call goes to, and the result of an inlined helper.
            let unseen = (good.code == CALL && bad.code == CALL && bad.imm != good.imm)
                || inlined.contains(&at)
                || guard.contains(&at);
            assert!(found.is_err() || unseen, "{at}: {} for {}: {found:?}", bad.text(None), good.text(None));
        }
        let mut fewer = translated.clone();
        fewer.remove(at);
        let branch = good.class() == class::JMP && good.code != EXIT;
        let unseen = inlined.contains(&at) || guard.contains(&at) || branch;
        assert!(compared(&program, &fewer).is_err() || unseen, "{at}");
    }
    // One more instruction is found too, even in a place that is never reached.
    for at in 0..=translated.len() {
        let mut more = translated.clone();
        more.insert(at, insn(0xb7, 8, 0, 0, 1));
        assert!(compared(&program, &more).is_err(), "{at}");
    }
    // A call of something that does not exist has no counterpart: libbpf puts it where the verifier must not get.
    for poison in [Insn::POISON.imm, LEFT_OUT, LEFT_OUT + 7] {
        let mut poisoned = program.clone();
        poisoned[10].imm = poison;
        assert!(compared(&poisoned, &translated).is_err());
        // Such a call does no harm in a place that is dropped.
        poisoned[10] = program[10];
        poisoned[13] = insn(CALL, 0, 0, 0, poison);
        assert!(compared(&poisoned, &translated).is_ok());
    }
    // The instructions around a division do no other arithmetic on its result.
    let mut altered = translated.clone();
    altered[9] = insn(0x07, 7, 0, 0, 1);
    assert!(compared(&program, &altered).is_err());
    // A helper must not touch a saved register.
    let mut altered = translated.clone();
    altered[5].dst = 6;
    assert!(compared(&program, &altered).is_err());
    assert!(compared(&program, &[]).is_err());
}

#[test]
fn the_first_difference_is_named() {
    let (program, mut translated) = pair();
    translated[17].off = 8;
    let found = compared(&program, &translated).unwrap_err();
    assert_eq!(found.insn, Some(17));
    assert!(found.why.contains("instruction 17, *(u32 *)(r2 +8) = r0; it was *(u32 *)(r2 +4) = r0"), "{found:?}");
    // This difference comes after a branch that is left out.
    translated[17].off = 4;
    translated[14].imm = 1;
    let found = compared(&program, &translated).unwrap_err();
    assert_eq!(found.insn, Some(14), "{found:?}");
    let after = [insn(0x15, 0, 0, 2, 0), insn(0xb7, 6, 0, 0, 1), EXIT_, insn(0xb7, 0, 0, 0, 0), EXIT_];
    let found = compared(&after, &[insn(0xb7, 0, 0, 0, 1), EXIT_]).unwrap_err();
    assert_eq!(found.insn, Some(3), "{found:?}");
}

#[test]
fn called_functions_are_followed() {
    let program = [
        insn(0x18, 2, PSEUDO_FUNC, 0, 3), // a callback: 4
        Insn::EMPTY,
        insn(CALL, 0, PSEUDO_CALL, 0, 2), // 5
        EXIT_,
        EXIT_,
        insn(0xb7, 0, 0, 0, 1),
        EXIT_,
    ];
    let mut translated = program;
    translated[1].imm = 2;
    translated[2] = insn(CALL, 0, PSEUDO_CALL, 2, 1);
    let found = compared(&program, &translated).unwrap();
    assert_eq!(found, Translation { same: 7, rewritten: 0, dropped: 0 });
    translated[5].imm = 2;
    assert_eq!(compared(&program, &translated).unwrap_err().insn, Some(5));
}

#[test]
fn blinded_constants_are_noticed() {
    let (program, translated) = pair();
    assert!(!is_blinded(&program) && !is_blinded(&translated));
    assert!(is_blinded(&[insn(0xb7, AX, 0, 0, 12345)]));
}
