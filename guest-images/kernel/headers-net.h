/* SPDX-License-Identifier: GPL-2.0-only */
/* What cc precompiles for the network: see headers-core.h. */
#include "headers-core.h"
#include <linux/skbuff.h>
#include <linux/netdevice.h>
#include <net/net_namespace.h>
#include <net/sock.h>
