//! W2: a decision, and who a local caller may be taken for.

use super::{Code, CodeId, Level};

rows! {
    POLICY;
    NO_ALLOW = "W2101" Error "no policy allows this caller"
        cause: "no ALLOW rule for the service names the caller, and the default is Deny"
        fix: ["allow it:       weft policy allow <caller> <service>",
              "see why:        weft policy check <caller> <service>"];
    DENY_RULE = "W2102" Error "a DENY rule matches"
        cause: "DENY wins over every ALLOW; a DENY that cannot be decided refuses too"
        fix: ["see the rule:   weft describe authorizationpolicy/<policy>",
              "remove it:      weft delete authorizationpolicy/<policy>",
              "see why:        weft policy check <caller> <service>"];
    AUDITED = "W2103" Warning "allowed only because the default is Audit"
        cause: "no rule allows the caller; with defaultAuthorization: Deny this call would be refused"
        fix: ["allow it for good:   weft policy allow <caller> <service>"];
    PORT_NOT_ALLOWED = "W2105" Error "the nearest rule matches the caller but not the port"
        cause: "an ALLOW rule names the caller, but other ports of the service"
        fix: ["allow it:   weft policy allow <caller> <service> --port <port>",
              "see why:    weft policy check <caller> <service>:<port>"];
    NETWORK_NOT_ALLOWED = "W2106" Error "the nearest rule matches the caller but not its network"
        cause: "an ALLOW rule names the caller, but it dials from an address outside the rule's networks"
        fix: ["see why:        weft policy check <caller> <service> --source-ip <address>",
              "see the rule:   weft describe authorizationpolicy/<policy>"];
    POLICY_UNAVAILABLE = "W2107" Error "a policy of the service cannot be read, so the service is closed"
        cause: "the policy was written by a newer version, is damaged, or lost a part; it never reads as \"any\""
        fix: ["see it:           weft get authorizationpolicy/<policy> -o yaml",
              "write it again:   weft apply -f <file>"];
    NO_SNAPSHOT = "W2108" Error "this agent has no policy yet"
        cause: "it has not reached a server since it was set up, and nothing is stored on its disk"
        fix: ["see what it waits for:   weft agent status"];
    UNAUTHENTICATED_CALLER = "W2109" Error "the caller has no identity and no rule admits plain callers"
        cause: "the connection came without a certificate; Any means any authenticated caller"
        fix: ["run the caller in the mesh:   weft run --service <caller> -- <command>"];
    REVOKED_BY_POLICY = "W2110" Error "the connection was cut because the policy changed"
        cause: "it was allowed when it was opened; the rules in force now refuse it"
        fix: ["see why:   weft policy check <caller> <service>"];
    DRY_RUN_DENY = "W2111" Warning "a policy in DryRun would refuse this"
        cause: "its mode is DryRun: evaluated, counted and logged, never blocking"
        fix: ["see it:   weft describe authorizationpolicy/<policy>",
              "see why:  weft policy check <caller> <service>"];
    CALLER_NOT_PROVEN = "W2201" Error "the local caller cannot be proven"
        cause: "the kernel no longer knows the connection's owner, or does not tell this agent"
        fix: ["start the caller in the mesh:   weft run --service <caller> -- <command>",
              "try again:   weft call <service>"];
    NO_WORKLOAD_FOR_UID = "W2202" Error "no workload of this agent belongs to the caller's user"
        cause: "the program runs under a user for whom no workload is declared or started"
        fix: ["start it in the mesh:    weft run --service <caller> -- <command>",
              "see the workloads:   weft agent status"];
    AMBIGUOUS_WORKLOAD = "W2203" Error "the caller's user has several workloads"
        cause: "on the shared proxy port the user alone does not tell which of its workloads is calling"
        fix: ["use the proxy address that weft run sets for its child:   weft run --service <caller> -- <command>",
              "see the workloads:   weft agent status"];
    BAD_CREDENTIAL = "W2204" Error "the proxy credential belongs to no workload of this agent"
        cause: "it is of an earlier run, of another agent, or mistyped"
        fix: ["get a new one by starting the caller again:   weft run --service <caller> -- <command>"];
    IDENTITY_NOT_ON_NODE = "W2205" Error "this node does not hold that identity"
        cause: "no workload with it runs here, or no enrollment gives it to this node"
        fix: ["see what runs here:   weft agent status",
              "enroll it:            weft token create --for agent --node <node> --namespace <namespace> --service <service>"];
    MAY_NOT_SPEAK_AS = "W2206" Error "this user may not speak as that workload"
        cause: "only the agent's own user, root, and users named by the enrollment's selectors may"
        fix: ["see the selectors:   weft get workloadenrollments -n <namespace> -o yaml"];
    CROSS_SITE = "W2207" Error "a web page of another site sent this request"
        cause: "Origin or Sec-Fetch-Site is cross-site; a browser must not lend a workload's identity to any page"
        fix: ["call it from a program:   weft call <service>"];
    SHARED_UID = "W2208" Error "the workload would run as the server's own user"
        cause: "it could reach server.sock and act as admin; refused since a second node has joined"
        fix: ["run it as another user, or accept it:   weft up --allow-shared-uid"];
    OTHER_WORKLOAD = "W2209" Error "the listener belongs to a workload of another user"
        cause: "upstream listeners and the proxy port of weft run serve one workload, proven by its user"
        fix: ["start the caller with its own:   weft run --service <caller> --upstream <service>=<port> -- <command>"];
    WRONG_SERVER_IDENTITY = "W2301" Error "the endpoint's identity may not serve the service"
        cause: "it is neither /ns/<namespace>/sa/<service> nor listed in the Service's identities"
        fix: ["see who may:   weft get service/<service> -o yaml",
              "see endpoints:   weft describe service/<service>"];
}
