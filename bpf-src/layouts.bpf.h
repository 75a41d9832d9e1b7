/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0-only */
/*
 * Puts the records and enums that no map mentions into this object's BTF, where the loader checks them. Nothing reads these
 * variables.
 */
#ifndef XCTL_LAYOUTS_BPF_H
#define XCTL_LAYOUTS_BPF_H

const struct retransmit_event *retransmit_event_layout __attribute__((unused));
const struct send_event *send_event_layout __attribute__((unused));
const struct cut_event *cut_event_layout __attribute__((unused));
const struct drop_event *drop_event_layout __attribute__((unused));
const struct socket_record *socket_record_layout __attribute__((unused));
const struct reading *reading_layout __attribute__((unused));
const struct holder *holder_layout __attribute__((unused));
const struct account *account_layout __attribute__((unused));
const enum account_why *account_why_values __attribute__((unused));
const enum known_by *known_by_values __attribute__((unused));
const enum how *how_values __attribute__((unused));
const enum reading_of *reading_of_values __attribute__((unused));
const enum event_type *event_type_values __attribute__((unused));
const enum cut_why *cut_why_values __attribute__((unused));
const enum kind *kind_values __attribute__((unused));
const enum lost *lost_values __attribute__((unused));

#endif
